"""bsfind from Python: `find`, `check` and the report that they return; `bsfind` exports them."""

"""What `bsfind.find` adds to the options: Python objects for the worker, and what a notebook shows."""

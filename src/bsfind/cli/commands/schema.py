"""`bsfind schema`: the JSON Schema of the report."""

from __future__ import annotations

import sys


def schema() -> None:
    """Print the JSON Schema of the report that `--json` prints."""
    from bsfind.report import json as report_json

    sys.stdout.write(report_json.dumps(report_json.schema()))

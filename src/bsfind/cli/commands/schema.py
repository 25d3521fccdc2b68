"""`bsfind schema`: the JSON Schema of the report."""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of the report that `--json` prints."""
    import json
    import sys

    from bsfind.report.json import schema as report_schema

    sys.stdout.write(json.dumps(report_schema(), indent=2) + "\n")

"""Is a report one of bsfind's schema?"""

from __future__ import annotations

from typing import Any

from bsfind.report.json import schema
from bsfind.report.validation import validated


def check_schema(report: dict[str, Any]) -> None:
    """Fail where a report is not one of the schema.

    The interpreter of a real GPU may have no jsonschema: bsfind's own reading, which knows the part of JSON
    Schema that the schema uses, checks there.
    """
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:
        validated(report, schema())
    else:
        Draft202012Validator(schema()).validate(report)

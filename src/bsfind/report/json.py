"""The report as JSON: the document that scripts read (schema in `schema.json`)."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from bsfind.inspect.inspection import InspectionReport
from bsfind.records import Report


def to_json(report: Report | InspectionReport) -> str:
    """Return the document, indented, with a newline at its end."""
    return json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the report of `run` and `check`."""
    return _shipped("schema.json")


def inspection_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `inspect` finds out."""
    return _shipped("inspection_schema.json")


def _shipped(name: str) -> dict[str, Any]:
    text = (resources.files(__package__) / name).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document

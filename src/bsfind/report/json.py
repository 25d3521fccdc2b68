"""The report as JSON: the document that scripts read (schema in `schema.json`)."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from bsfind.records import Report

__all__ = ["schema", "to_json"]


def to_json(report: Report) -> str:
    """Return the document, indented, with a newline at its end."""
    return json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    text = (resources.files(__package__) / "schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document

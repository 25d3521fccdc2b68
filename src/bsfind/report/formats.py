"""The formats of exported reports, by the ending of the file."""

from __future__ import annotations

__all__ = ["EXPORT_FORMATS"]

EXPORT_FORMATS = (".json", ".md", ".csv")

"""The formats of exported reports, by the ending of the file."""

from __future__ import annotations

EXPORT_FORMATS = (".json", ".md", ".csv", ".svg", ".png")

SLOW_FORMATS = (".png",)
"""Those that take longer to write than a trial may take: a picture is not drawn after each."""

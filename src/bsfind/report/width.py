"""Does a table fit? Rich cuts cells where it does not, and numbers must never be cut."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["fits"]


def fits(table: Table, console: Console) -> bool:
    """Tell whether the console is wide enough to print the table with no cell cut or wrapped."""
    wide = console.options.update(width=1000, max_width=1000)
    return Measurement.get(console, wide, table).maximum <= console.width

"""Does a table fit? Rich cuts cells where it does not, and numbers must never be cut."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["excess", "fits"]


def excess(table: Table, console: Console) -> int:
    """Return by how many columns a table with no cell cut or wrapped is wider than the console."""
    wide = console.options.update(width=1000, max_width=1000)
    return Measurement.get(console, wide, table).maximum - console.width


def fits(table: Table, console: Console) -> bool:
    """Tell whether the console is wide enough to print the table with no cell cut or wrapped."""
    return excess(table, console) <= 0

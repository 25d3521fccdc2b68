"""What `bsfind diff` prints: a row for each figure, and the verdict in a sentence."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsfind.report.diff import Change, Difference, Row
from bsfind.report.width import fits
from bsfind.units import format_bytes, plain_number

_STYLES = {"worse": "red", "better": "green", "same": "", None: "dim"}
_NAMES = {
    "max_batch_size": "max batch",
    "recommended_batch_size": "recommended",
    "peak_allocated": "peak allocated",
    "peak_reserved": "peak reserved",
}
_NOTHING = "none"


def print_difference(difference: Difference, console: Console) -> None:
    """Print the difference in the width of the console."""
    layouts = [_table(difference, with_verdict=True), _table(difference, with_verdict=False)]
    table = next((table for table in layouts if fits(table, console)), None)
    if table is not None:
        console.print(table)
    else:
        for row in difference.rows:
            for change in row.changes:
                old, new, by = _cells(change)
                line = f"{row.name} {_figure(change)}: {old} → {new} {by}"
                console.print(Text(line.rstrip(), _STYLES[change.verdict]), soft_wrap=True)
    console.print()
    for text, style in _sentences(difference):
        console.print(Text(text, style=style), soft_wrap=not console.is_terminal)


def _table(difference: Difference, *, with_verdict: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("precision", "figure", "old", "new", "change"):
        right = header not in ("precision", "figure")
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    if with_verdict:
        table.add_column("", no_wrap=True)
    for row in difference.rows:
        for i, change in enumerate(row.changes):
            cells = [row.name if i == 0 else "", _figure(change), *_cells(change)]
            verdict = "" if change.verdict in ("same", None) else str(change.verdict)
            table.add_row(
                *cells, *([verdict] if with_verdict else []), style=_STYLES[change.verdict]
            )
    return table


def _figure(change: Change) -> str:
    """Return what a figure is: `peak reserved at 200`, `at 200 / 196` where the sizes differ."""
    name = _NAMES[change.figure]
    if change.old_batch_size is None:
        return name
    if change.old_batch_size == change.new_batch_size:
        return f"{name} at {change.old_batch_size:,}"
    return f"{name} at {change.old_batch_size:,} / {change.new_batch_size:,}"


def _cells(change: Change) -> tuple[str, str, str]:
    def written(value: int | None) -> str:
        if value is None:
            return _NOTHING
        return format_bytes(value) if change.figure.startswith("peak_") else f"{value:,}"

    part = change.part
    by = "" if part is None else "=" if change.old == change.new else f"{part:+.1%}"
    return written(change.old), written(change.new), by


def _sentences(difference: Difference) -> list[tuple[str, str]]:
    """Return what became worse and what became better, with their styles."""
    told = []
    for verdict in ("worse", "better"):
        rows = [named for row in difference.rows if (named := _named(row, verdict))]
        if rows:
            told.append((f"{verdict.capitalize()}: {'; '.join(rows)}.", _STYLES[verdict]))
    limit = f"{plain_number(difference.threshold * 100)}%"
    return told or [(f"No figure changed by more than {limit}.", "")]


def _named(row: Row, verdict: str) -> str:
    """Return which figures of a row came to a verdict: `fp32 max batch -4.5%`; empty: none."""
    names = [_named_change(change) for change in row.changes if change.verdict == verdict]
    return f"{row.name} {', '.join(names)}" if names else ""


def _named_change(change: Change) -> str:
    old, new, by = _cells(change)
    return f"{_NAMES[change.figure]} {by or f'{old} → {new}'}"

"""The report for people: the comparison table, with the answer in a sentence under it."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsfind.records import PrecisionResult, Report
from bsfind.report import wording
from bsfind.report.hints import hints
from bsfind.report.sentences import answer, problems, sentences, tried_before_an_error
from bsfind.report.width import fits, sentence

_LAYOUTS = (
    (
        "precision",
        "max batch",
        "recommended",
        "peak allocated",
        "peak reserved",
        "card bar",
        "samples/s",
        wording.SPEED_UP,
    ),
    (
        "precision",
        "max batch",
        "recommended",
        "peak allocated",
        "peak reserved",
        "of the card",
        "samples/s",
        wording.SPEED_UP,
    ),
    (
        "precision",
        "max batch",
        "recommended",
        "peak reserved",
        "of the card",
        "samples/s",
        wording.SPEED_UP,
    ),
    ("precision", "max batch", "recommended", "peak reserved", "samples/s"),
    ("precision", "recommended", "peak reserved"),
)
"""From wide to narrow: columns go, numbers are never cut."""

_TWO_LINES = {
    "peak allocated": "peak\nallocated",
    "peak reserved": "peak\nreserved",
    "max batch": "max\nbatch",
    "of the card": "of the\ncard",
}
_BAR_WIDTH = 10
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_report(report: Report, console: Console) -> None:
    """Print the report in the width of the console."""
    if report.status == "failed" and not tried_before_an_error(report):
        return  # there is nothing to show: the error has been told
    _print(console, wording.subject(report), style="bold")
    for text in (wording.conditions(report), wording.assumed(report.assumptions)):
        if text is not None:
            _print(console, text, style="dim")
    if report.results:
        console.print()
        _print_results(report, console)
        console.print()
    if report.status == "partial":
        _print(
            console, f"{report.status}: {report.message or 'a trial took too long'}", style="yellow"
        )
    text = answer(report)
    if text is not None:
        _print(console, text, style="bold green")
    for text in (*sentences(report), *problems(report)):
        _print(console, text)
    for text in hints(report):
        _, _, rest = sentence(f"hint: {text}", console).partition(":")
        console.print(Text.assemble(("hint:", "cyan"), rest), soft_wrap=True)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(sentence(text, console), style=style), soft_wrap=True)


def _print_results(report: Report, console: Console) -> None:
    for two_lines in (False, True):
        for columns in _LAYOUTS[: 2 if not two_lines else None]:
            table = _table(report, columns, console, two_lines=two_lines)
            if fits(table, console):
                console.print(table)
                return
    for result in wording.rows(report):  # narrower than any table: one line per figure
        for name, cell in wording.cells(result, report).items():
            if cell:
                console.print(Text(f"{wording.title(name, report)}: {cell}"), soft_wrap=True)


def _table(report: Report, columns: tuple[str, ...], console: Console, *, two_lines: bool) -> Table:
    known = {"card bar", *wording.cells(report.results[0], report)}
    if len(report.results) == 1:
        known.discard(wording.SPEED_UP)
    columns = tuple(name for name in columns if name in known)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if two_lines else 2, 0, 0),
    )
    for name in columns:
        header = "of the card" if name == "card bar" else wording.title(name, report)
        if two_lines:
            header = _TWO_LINES.get(header, header)
        table.add_column(
            header,
            justify="left" if name in ("precision", "card bar") else "right",
            no_wrap=not two_lines,
        )
    best = wording.recommended(report)
    for result in wording.rows(report):
        cells = wording.cells(result, report)
        cells["card bar"] = _bar(result, console)
        table.add_row(
            *(cells[name] for name in columns),
            style="bold" if result is best and len(report.results) > 1 else "",
        )
    return table


def _bar(result: PrecisionResult, console: Console) -> str:
    fraction = result.peak_fraction
    if fraction is None:
        return "–"
    percent = f"{wording.percentage(fraction):>4}"
    if console.encoding.lower().replace("-", "") != "utf8":
        return percent
    eighths = max(0, min(_BAR_WIDTH * 8, round(fraction * _BAR_WIDTH * 8)))
    full, rest = divmod(eighths, 8)
    bar = _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")
    return f"{bar:<{_BAR_WIDTH}} {percent}"

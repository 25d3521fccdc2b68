"""What `run` and `check` print at the terminal: a table with sentences below it, or a line per precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsfind.report import wording
from bsfind.report.columns import GPU, SEQ_LEN, SPEED_UP, cells_of, title_of
from bsfind.report.sentences import (
    accuracy,
    answer,
    evaluation_against_training,
    hints,
    problems,
    sentences,
    tried_before_an_error,
)
from bsfind.report.width import fits, is_utf8, labelled, print_sentence, sentence
from bsfind.results import PrecisionResult, Report
from bsfind.units import format_bytes, format_count

_BAR = "card bar"
"""Name of the column with bars."""

_FITTED = ("precision", SEQ_LEN, "max batch", "recommended")
_TIMES = ("samples/s", SPEED_UP)
LAYOUTS = (
    (*_FITTED, "peak allocated", "peak reserved", _BAR, *_TIMES),
    (*_FITTED, "peak allocated", "peak reserved", "of the card", *_TIMES),
    (*_FITTED, "peak reserved", "of the card", *_TIMES),
    (*_FITTED, "peak reserved", "samples/s"),
    ("precision", SEQ_LEN, "recommended", "peak reserved"),
)
"""Columns from the widest table to the narrowest: columns are left out, numbers are never cut."""

_TWO_LINES = {
    "peak allocated": "peak\nallocated",
    "peak reserved": "peak\nreserved",
    SEQ_LEN: "seq\nlen",
    "max batch": "max\nbatch",
    "of the card": "of the\ncard",
}
_BAR_WIDTH = 10
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_report(report: Report, console: Console) -> None:
    """Print the report of `run` in the width of the console."""
    if report.status == "failed" and not tried_before_an_error(report):
        return  # there is nothing to show: the error has been printed
    _print_heading(report, console)
    if report.results:
        console.print()
        _print_results(report, console)
        console.print()
    if report.status == "partial":
        print_sentence(
            console, f"{report.status}: {report.message or wording.UNFINISHED}", style="yellow"
        )
    text = answer(report)
    if text is not None:
        print_sentence(console, text, style="bold green")
    for text in (*sentences(report), *problems(report)):
        print_sentence(console, text)
    _print_hints(report, console)


def print_check(report: Report, console: Console) -> None:
    """Print the report of `check`: one line per precision."""
    _print_heading(report, console)
    if report.status == "failed" and not report.results:
        print_sentence(console, f"failed: {report.message}", style="yellow")
    width = max((len(wording.full_label(result)) for result in report.results), default=0)
    for result in report.results:
        style = "red" if result.max_size is None else "green"
        start = f"{wording.full_label(result):<{width}}  "
        indent = " " * len(start)
        text = sentence(_verdict(result, report), console, first=start, indent=indent)
        console.print(Text.assemble(start, (text[len(start) :], style)), soft_wrap=True)
    bound = accuracy(report)
    if bound is not None:
        print_sentence(console, f"Predicted, not run. {bound}")
    if not all(result.max_size for result in report.results):
        _print_hints(report, console)


def _print_heading(report: Report, console: Console) -> None:
    subject, *rest = wording.heading(report)
    print_sentence(console, subject, style="bold")
    for text in rest:
        print_sentence(console, text, style="dim")


def _print_hints(report: Report, console: Console) -> None:
    for text in hints(report):
        console.print(labelled("hint", "cyan", text, console), soft_wrap=True)


def _print_results(report: Report, console: Console) -> None:
    best = wording.recommended(report)
    rows = [
        (cells(result, report, console), result is best and len(report.results) > 1)
        for result in wording.rows(report)
    ]
    if len(report.results) == 1:
        rows[0][0].pop(SPEED_UP, None)
    print_rows(rows, report, LAYOUTS, console)


def cells(result: PrecisionResult, report: Report, console: Console) -> dict[str, str]:
    """Return the cells of a row, by column."""
    return {**cells_of(result, report), _BAR: _bar(result, console)}


def print_rows(
    rows: Sequence[tuple[Mapping[str, str], bool]],
    report: Report,
    layouts: Sequence[Sequence[str]],
    console: Console,
) -> None:
    """Print a table in the width of the console.

    Args:
        rows: the cells of each row, by column, and whether it is in bold.
        report: which has such rows.
        layouts: columns, from the widest table to the narrowest; the first two keep titles in one line.
        console: where it is printed.
    """
    for two_lines in (False, True):
        for columns in layouts[: 2 if not two_lines else None]:
            table = _table(rows, report, columns, two_lines=two_lines)
            if fits(table, console):
                console.print(table)
                return
    for row, _ in rows:  # narrower than any table: one line per figure
        for name, cell in row.items():
            if cell and name != _BAR:
                print_sentence(console, f"{title_of(name, report)}: {cell}")


def _table(
    rows: Sequence[tuple[Mapping[str, str], bool]],
    report: Report,
    columns: Sequence[str],
    *,
    two_lines: bool,
) -> Table:
    columns = [name for name in columns if name in rows[0][0]]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if two_lines else 2, 0, 0),
    )
    for name in columns:
        header = "of the card" if name == _BAR else title_of(name, report)
        if two_lines:
            header = _TWO_LINES.get(header, header.replace("max ", "max\n"))
        table.add_column(
            header,
            justify="left" if name in (GPU, "precision", _BAR) else "right",
            no_wrap=not two_lines,
        )
    for row, is_bold in rows:
        table.add_row(*(row[name] for name in columns), style="bold" if is_bold else "")
    return table


def _bar(result: PrecisionResult, console: Console) -> str:
    fraction = result.peak_fraction
    if fraction is None:
        return "–"
    percent = f"{wording.percentage(fraction):>4}"
    if not is_utf8(console):
        return percent
    eighths = max(0, min(_BAR_WIDTH * 8, round(fraction * _BAR_WIDTH * 8)))
    full, rest = divmod(eighths, 8)
    bar = _EIGHTHS[8] * full + (_EIGHTHS[rest] if rest else "")
    return f"{bar:<{_BAR_WIDTH}} {percent}"


def _verdict(result: PrecisionResult, report: Report) -> str:
    batch_size = report.search["batch_size"]
    trial = next((t for t in result.trials if t.status == "ok"), None)
    if trial is None:
        failed = next((t for t in result.trials if t.message), None)
        why = failed.message if failed else result.message
        word = {"nothing_fits": "does not fit", "error": "failed"}.get(result.status, result.status)
        if failed is not None and failed.error_kind == "batch_norm":
            word, why = "does not run", result.message
        if result.status == "error":
            why = result.message
        return f"batch size {batch_size} {word}" + (f": {why}" if why else "")
    number = str(batch_size)
    if result.global_batch_size is not None:
        number += f" per GPU, {result.global_batch_size:,} in all,"
    text = f"batch size {number} fits: peak reserved {format_bytes(trial.peak_reserved_bytes)}"
    if report.device is not None and trial.peak_reserved_bytes is not None:
        left = report.device.capacity_bytes - trial.peak_reserved_bytes
        text += f", {format_bytes(left)} left"
    compared = evaluation_against_training(trial)
    if compared is not None:
        text += f". {compared}"
    if trial.samples_per_s:
        text += f", {format_count(trial.samples_per_s)} samples/s"
    return text

"""What was found on a list of GPUs: one table, the smallest that is large enough, and why others are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rich.console import Console

from bsfind.report import csv, wording
from bsfind.report.columns import GPU, NOTHING, SEQ_LEN, cells_of, title_of
from bsfind.report.markup import markdown
from bsfind.report.sentences import accuracy, global_batch, hints, problems, tried_before_an_error
from bsfind.report.table import LAYOUTS, cells, print_rows
from bsfind.report.width import labelled, print_sentence
from bsfind.results import PrecisionResult, Report
from bsfind.search.compared_gpus import ComparedGpus, GpuReport, listed
from bsfind.units import format_bytes

_MEMORY = "memory"
_LAYOUTS = (
    *((GPU, _MEMORY, *columns) for columns in LAYOUTS[:-1]),
    (GPU, "precision", SEQ_LEN, "max batch", "recommended"),
)

Cells = Callable[[PrecisionResult, Report], dict[str, str]]


def print_compared(report: ComparedGpus, console: Console) -> None:
    """Print the table of `run` with a list of GPUs in the width of the console."""
    shown = _example(report)
    has_tried = any(tried_before_an_error(card.report) for card in report.cards)
    if shown is None or (report.status == "failed" and not has_tried):
        return  # there is nothing to show: the errors have been printed
    subject, *rest = _heading(report, shown)
    print_sentence(console, subject, style="bold")
    for text in rest:
        print_sentence(console, text, style="dim")
    console.print()
    previous, rows = None, []
    for card, result, row in _rows(report, lambda r, of: cells(r, of, console)):
        if card is previous:
            row |= {GPU: "", _MEMORY: ""}
        rows.append((row, card is report.smallest and result is wording.recommended(card.report)))
        previous = card
    print_rows(rows, shown, _LAYOUTS, console)
    console.print()
    if report.status == "partial":
        text = f"partial: {report.message or wording.UNFINISHED}"
        print_sentence(console, text, style="yellow")
    told = answer(report)
    if told is not None:
        print_sentence(console, told, style="bold green")
    for text in (*_sentences(report), *reasons(report)):
        print_sentence(console, text)
    for text in hints((report.smallest or report.cards[-1]).report):
        console.print(labelled("hint", "cyan", text, console), soft_wrap=True)


def compared_to_markdown(report: ComparedGpus) -> str:
    """Return the table and the sentences under it."""
    shown, told = _example(report), answer(report)
    rows = [row for _, _, row in _rows(report, cells_of)]
    return markdown(
        report,
        heading=_heading(report, shown) if shown else [report.message or ""],
        titles=[title_of(column, shown) for column in rows[0]] if shown else [],
        rows=rows,
        texts=([told] if told else []) + _sentences(report),
        notes=reasons(report),
    )


def compared_to_csv(report: ComparedGpus) -> str:
    """Return one row per trial, the key of the GPU in front."""
    rows = [["gpu", *csv.header(report.cards[0].report)]] if report.cards else []
    return csv.written(
        [*rows, *([card.gpu, *row] for card in report.cards for row in csv.rows(card.report))]
    )


def answer(report: ComparedGpus) -> str | None:
    """Return in one sentence which GPU is the smallest that is large enough; None if none is."""
    card, least = report.smallest, report.fail_under
    if card is None:
        return None
    searched = card.report.searched
    what = f"a recommended {searched}" if least is None else f"{searched} {least:,} or more"
    return f"Smallest GPU with {what}: {_with_number(card)}."


def _with_number(card: GpuReport) -> str:
    result, chosen = wording.recommended(card.report), card.report.recommendation
    assert result is not None
    assert chosen is not None
    name = card.label if card.label == card.name else f"{card.label} ({card.name})"
    number = f"{card.report.searched} {chosen.size:,}"
    return f"{name}, {number}{wording.in_which(result, card.report)}"


def _sentences(report: ComparedGpus) -> list[str]:
    """Return the lines below the answer."""
    card = report.smallest
    if card is None:
        return []
    lines = list(global_batch(card.report))
    whole = report.smallest_without_accumulation
    if whole is not None:
        lines.append(f"Smallest GPU without accumulation: {_with_number(whole)}.")
    return [*lines, f"Predicted, not run. {accuracy(card.report) or ''}".rstrip()]


def reasons(report: ComparedGpus) -> list[str]:
    """Return why GPUs, or precisions on them, have no answer, and which were not tried."""
    said = []
    for card in report.cards:
        texts = problems(card.report)
        if not card.report.results and card.report.message:
            texts = [card.report.message]
        said += [(card.label, text) for text in texts]
    not_tried = f"Not tried: {listed(report.not_tried)}."
    return [*report.told_once(said), *([not_tried] if report.not_tried else [])]


def _example(report: ComparedGpus) -> Report | None:
    """Return the report that the heading and the titles of columns are from; None if no GPU has results."""
    cards = (report.smallest, *report.cards)
    found = [card.report for card in cards if card is not None and card.report.results]
    return next((one for one in found if one.model is not None), found[0] if found else None)


def _heading(report: ComparedGpus, shown: Report) -> list[str]:
    subject, *rest = wording.heading(dataclasses.replace(shown, device=None))
    return [
        f"{subject} · {len(report.cards) + len(report.not_tried)} simulated GPUs compared",
        *rest,
    ]


def _rows(
    report: ComparedGpus, cells: Cells
) -> list[tuple[GpuReport, PrecisionResult | None, dict[str, str]]]:
    """Return the cells of every row, of a GPU without a result too."""
    shown = _example(report)
    if shown is None:
        return []
    empty = dict.fromkeys(cells(shown.results[0], shown), NOTHING)
    found: list[tuple[GpuReport, PrecisionResult | None, dict[str, str]]] = []
    for card in report.cards:
        start = {GPU: card.label, _MEMORY: format_bytes(card.total_bytes)}
        of_card = wording.rows(card.report)
        found.extend((card, result, start | cells(result, card.report)) for result in of_card)
        if not of_card:
            largest = "failed" if card.report.status == "failed" else NOTHING
            found.append((card, None, start | empty | {"max batch": largest}))
    return found

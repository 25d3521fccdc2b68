"""The columns of the comparison table, in the terminal, Markdown, HTML and `bsfind diff`."""

from __future__ import annotations

from bsfind.report.wording import label, lengths, percentage
from bsfind.results import PrecisionResult, Report
from bsfind.search.recommend import baseline, speed_up
from bsfind.units import format_bytes, format_count

SPEED_UP = "speed-up"
"""Name of the column of speed-ups."""

SEQ_LEN = "seq len"
"""Name of the column of the lengths of sequences, where there are several."""

GPU = "GPU"
"""Name of the column of GPUs, where a list of them is compared."""

NOTHING = "–"
"""What stands in a cell without a figure."""


def cells_of(result: PrecisionResult, report: Report) -> dict[str, str]:
    """Return the cells of a row of the comparison table, by column.

    A prediction has no times, and no columns for them.
    """
    timed = {
        "samples/s": format_count(result.samples_per_s) if result.samples_per_s else NOTHING,
    }
    if report.launch is None or baseline(report.results, result.seq_len) is not None:
        ratio = speed_up(result, report.results)
        timed[SPEED_UP] = f"{ratio:.1f} x" if ratio else ""
    instead = {"nothing_fits": "none", "error": "failed"}
    largest = instead.get(result.status) or _count(result.max_size)
    cells = {
        "precision": label(result),
        **({} if result.seq_len is None else {SEQ_LEN: f"{result.seq_len:,}"}),
        "max batch": largest,
        "recommended": _count(result.recommended_size),
        "peak allocated": _bytes(result.peak_allocated_bytes),
        "peak reserved": _bytes(result.peak_reserved_bytes),
        "of the card": NOTHING
        if result.peak_fraction is None
        else percentage(result.peak_fraction),
        **({} if report.simulated else timed),
    }
    if report.axis is not None:
        cells.pop(SPEED_UP, None)
    return cells


def title_of(column: str, report: Report) -> str:
    """Return the title of a column of `cells_of`: that of speed-ups names the precision of the baseline."""
    if column == "max batch" and report.axis is not None:
        return f"max {report.axis}"
    if column == "precision" and report.launch is not None:
        return "variant"
    if column != SPEED_UP:
        return column
    references = (baseline(report.results, seq_len) for seq_len in lengths(report))
    names = {reference.precision for reference in references if reference}
    return SPEED_UP if len(names) > 1 else f"vs {next(iter(names), 'fp32')}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    return NOTHING if value is None else format_bytes(value)

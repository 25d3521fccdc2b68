"""What `bsfind check` prints: does this batch size fit, and what is left."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bsfind.records import PrecisionResult, Report
from bsfind.report import sentences, wording
from bsfind.report.hints import hints
from bsfind.units import format_bytes, format_count

__all__ = ["print_check"]


def print_check(report: Report, console: Console) -> None:
    """Print one line per precision."""
    soft_wrap = not console.is_terminal
    console.print(Text(wording.subject(report), style="bold"), soft_wrap=soft_wrap)
    conditions = wording.conditions(report)
    if conditions is not None:
        console.print(Text(conditions, style="dim"), soft_wrap=soft_wrap)
    if report.status == "failed":
        console.print(Text(f"failed: {report.message}", style="yellow"), soft_wrap=soft_wrap)
    width = max((len(result.precision) for result in report.results), default=0)
    for result in report.results:
        fits = result.max_batch_size is not None
        style = {True: "green", False: "red"}[fits]
        console.print(
            Text.assemble(f"{result.precision:<{width}}  ", (_verdict(result, report), style)),
            soft_wrap=soft_wrap,
        )
    accuracy = sentences.accuracy(report)
    if accuracy is not None:
        console.print(Text(f"Predicted, not run. {accuracy}"), soft_wrap=soft_wrap)
    if not all(result.max_batch_size for result in report.results):
        for text in hints(report):
            console.print(Text.assemble(("hint:", "cyan"), f" {text}"), soft_wrap=soft_wrap)


def _verdict(result: PrecisionResult, report: Report) -> str:
    batch_size = report.search["batch_size"]
    trial = next((t for t in result.trials if t.status == "ok"), None)
    if trial is None:
        word = {"nothing_fits": "does not fit", "error": "failed"}.get(result.status, result.status)
        failed = next((t for t in result.trials if t.message), None)
        why = failed.message if failed else result.message
        return f"batch size {batch_size} {word}" + (f": {why}" if why else "")
    text = f"batch size {batch_size} fits: peak reserved {format_bytes(trial.peak_reserved_bytes)}"
    if report.device is not None and trial.peak_reserved_bytes is not None:
        left = report.device.capacity_bytes - trial.peak_reserved_bytes
        text += f", {format_bytes(left)} left"
    if trial.samples_per_s:
        text += f", {format_count(trial.samples_per_s)} samples/s"
    return text

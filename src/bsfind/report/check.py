"""What `bsfind check` prints: does this batch size fit, and what is left."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from bsfind.records import PrecisionResult, Report
from bsfind.report import sentences, wording
from bsfind.report.hints import hints
from bsfind.report.width import sentence
from bsfind.units import format_bytes, format_count


def print_check(report: Report, console: Console) -> None:
    """Print one line per precision."""
    _print(console, wording.subject(report), style="bold")
    for text in (wording.conditions(report), wording.assumed(report.assumptions)):
        if text is not None:
            _print(console, text, style="dim")
    if report.status == "failed" and not report.results:
        _print(console, f"failed: {report.message}", style="yellow")
    width = max((len(wording.precision(result)) for result in report.results), default=0)
    for result in report.results:
        style = "red" if result.max_batch_size is None else "green"
        start = f"{wording.precision(result):<{width}}  "
        indent = " " * len(start)
        text = sentence(_verdict(result, report), console, first=start, indent=indent)
        console.print(Text.assemble(start, (text[len(start) :], style)), soft_wrap=True)
    accuracy = sentences.accuracy(report)
    if accuracy is not None:
        _print(console, f"Predicted, not run. {accuracy}")
    if not all(result.max_batch_size for result in report.results):
        for text in hints(report):
            _, _, rest = sentence(f"hint: {text}", console).partition(":")
            console.print(Text.assemble(("hint:", "cyan"), rest), soft_wrap=True)


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(sentence(text, console), style=style), soft_wrap=True)


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
    text = f"batch size {batch_size} fits: peak reserved {format_bytes(trial.peak_reserved_bytes)}"
    if report.device is not None and trial.peak_reserved_bytes is not None:
        left = report.device.capacity_bytes - trial.peak_reserved_bytes
        text += f", {format_bytes(left)} left"
    if trial.samples_per_s:
        text += f", {format_count(trial.samples_per_s)} samples/s"
    return text

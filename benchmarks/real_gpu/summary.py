"""The summary of a run in Markdown, made of the document alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.real_gpu.steps import Step

from bsfind.units import format_bytes

__all__ = ["summary"]

_FAKE = "This was a fake GPU (tests/fakegpu), whose kernels compute nothing. No figure is one of hardware."


def summary(
    head: Mapping[str, Any], steps: Mapping[str, Step], results: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the text.

    Args:
        head: fields that describe the run.
        steps: by their names.
        results: status, message, seconds, figures and rows of each.
    """
    card, versions = head["card"], head["versions"]
    lines = [f"# {'Fake GPU, no hardware: ' if card['is_fake'] else ''}{card['name']}", ""]
    if card["is_fake"]:
        lines += [_FAKE, ""]
    named = ", ".join(f"{name} {value}" for name, value in versions.items() if value is not None)
    lines += [
        f"{head['date']}. {format_bytes(card['total_bytes'])}, compute capability "
        f"{'.'.join(map(str, card['capability']))}, {card['sm_count']} multiprocessors. {named}.",
        "",
        f"{head['seconds']} s of {head['budget_s']} s{', the short form' if head['is_short'] else ''}. "
        f"Not installed: {', '.join(k for k, v in head['packages'].items() if v is None) or 'nothing'}.",
        "",
        "| step | status | seconds | rows |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {steps[name].title} | {_cell(result['status'])} | {result['seconds']} | {len(result['rows'])} |"
        for name, result in results.items()
    ]
    for name, result in results.items():
        lines += ["", f"## {steps[name].title}", ""]
        if result["message"]:
            lines += ["```text", result["message"].strip().replace("```", "'''"), "```", ""]
        lines += _figures(result["figures"])
        lines += _table(steps[name].columns, result["rows"])
        if not result["rows"] and not result["message"]:
            lines.append(f"{result['status'].capitalize()}.")
    return "\n".join(lines).rstrip() + "\n"


def _figures(figures: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in figures.items()]


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> list[str]:
    if not columns or not rows:
        return []
    names = [name.removesuffix("_bytes").replace("_", " ") for name in columns]
    lines = ["", f"| {' | '.join(names)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [
            _cell(row.get(name), is_bytes=name.endswith("_bytes") or name == "limit")
            for name in columns
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: Any, *, is_bytes: bool = False) -> str:
    if value is None:
        return ""
    if is_bytes and isinstance(value, int):
        return f"{value / 2**20:,.1f} MiB"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:120]

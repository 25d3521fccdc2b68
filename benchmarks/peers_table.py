"""The results of peers.py as Markdown."""

from __future__ import annotations

import statistics
from typing import Any

__all__ = ["markdown"]


def markdown(document: dict[str, Any]) -> str:
    """Return two tables: the tools over all models, and each model's results."""
    rows, tools = document["rows"], document["tools"]
    versions = ", ".join(
        dict.fromkeys(f"{tool['label'].split(',')[0]} {tool['version']}" for tool in tools.values())
    )
    lines = [
        f"{document['gpu']} with {document['gpu_bytes'] / 2**30:.0f} GiB, torch {document['torch']}, "
        f"{document['date']}. {versions}.",
        "",
        "| finder | answer, % of the maximum: median | worst | trials | OOMs | steps | seconds "
        "| answer was run | answer runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tool in tools.items():
        mine = [row for row in rows if row["tool"] == name]
        if not mine:
            continue  # so far: the table is written after every model
        lines.append(_summary(tool["label"], mine, "of_the_maximum", "runs"))
        if any(row["recommended"] for row in mine):
            lines.append(_recommended(mine))
    lines += [
        "",
        "Trials, OOMs and steps are means over the models, seconds their median. More: bsfind also times "
        "smaller sizes, and tries what expandable segments buy where memory is fragmented.",
        "",
        f"| model | precision | maximum | {' | '.join(tool['label'] for tool in tools.values())} |",
        "|---" * (3 + len(tools)) + "|",
    ]
    for model, precision in dict.fromkeys((row["model"], row["precision"]) for row in rows):
        mine = {
            row["tool"]: row
            for row in rows
            if (row["model"], row["precision"]) == (model, precision)
        }
        exact = next(iter(mine.values()))["exact"]
        cells = " | ".join(_cell(mine.get(name)) for name in tools)
        lines.append(f"| {model} | {precision} | {exact:,} | {cells} |")
    lines += [
        "",
        "\\* never run by the finder itself. † out of memory in a fresh process. –: it takes images only. "
        "None: the process ended without an answer (`error` in the JSON says how), which does not count.",
    ]
    return "\n".join(lines) + "\n"


def _summary(label: str, rows: list[dict[str, Any]], key: str, runs: str) -> str:
    asked, rows = len(rows), [row for row in rows if row["batch_size"]] or rows
    answered = [row for row in rows if row["batch_size"]]
    parts = [row[key] for row in answered] or [0.0]
    cells = [
        label + ("" if len(answered) == asked else f" (no answer: {asked - len(answered)})"),
        f"{statistics.median(parts):.1%}",
        f"{min(parts):.1%}",
        *_costs(rows),
        f"{sum(row['was_run'] for row in rows)} of {len(rows)}",
        f"{sum(bool(row[runs]) for row in rows)} of {len(rows)}",
    ]
    return f"| {' | '.join(cells)} |"


def _costs(rows: list[dict[str, Any]]) -> list[str]:
    extra = statistics.fmean(sum(t["is_extra"] for t in row["trials"]) for row in rows)
    trials = statistics.fmean(len(row["trials"]) for row in rows) - extra
    return [
        f"{trials:.1f}" + (f" + {extra:.1f} more" if extra else ""),
        f"{statistics.fmean(row['out_of_memory'] for row in rows):.1f}",
        f"{statistics.fmean(row['steps'] for row in rows):.1f}",
        f"{statistics.median(row['seconds'] for row in rows):.0f}",
    ]


def _recommended(rows: list[dict[str, Any]]) -> str:
    parts = [row["recommended_of_the_maximum"] for row in rows if row["recommended"]]
    ran = [
        any(t["batch_size"] == row["recommended"] and t["status"] == "ok" for t in row["trials"])
        for row in rows
    ]
    cells = [
        "… what it recommends, with 5 % of the memory free",
        f"{statistics.median(parts):.1%}",
        f"{min(parts):.1%}",
        *("", "", "", ""),
        f"{sum(ran)} of {len(rows)}",
        f"{sum(bool(row['recommended_runs']) for row in rows)} of {len(rows)}",
    ]
    return f"| {' | '.join(cells)} |"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if not row["batch_size"]:
        return "none"
    marks = ("" if row["was_run"] else "\\*") + ("" if row["runs"] else "†")
    return f"{row['batch_size']:,}{marks} ({row['of_the_maximum']:.0%})"

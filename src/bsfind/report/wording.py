"""Names and figures as people read them, which the table and Markdown share."""

from __future__ import annotations

from bsfind.recommend import baseline, speed_up
from bsfind.records import PrecisionResult, Report
from bsfind.units import format_bytes, format_count, format_parameters

__all__ = [
    "SPEED_UP",
    "cells",
    "conditions",
    "full_label",
    "label",
    "percentage",
    "recommended",
    "rows",
    "subject",
    "title",
]

SPEED_UP = "speed-up"
"""The column of speed-ups."""

_NOTHING = "–"


def subject(report: Report) -> str:
    """Return what was searched, and where, in one line."""
    parts = [report.workload["target"]]
    if report.model is not None:
        parts.append(f"{format_parameters(report.model.parameters)} parameters")
        if report.model.optimizer is not None:
            parts.append(report.model.optimizer)
    parts.append("training" if report.workload["mode"] == "train" else "inference")
    device = report.device
    if device is not None:
        memory = f"{format_bytes(device.total_bytes)} ({format_bytes(device.free_bytes)} free"
        if device.capacity_bytes < device.free_bytes:
            memory += f", limited to {format_bytes(device.capacity_bytes)}"
        name = f"simulated {device.name}" if report.simulated else device.name
        parts.append(f"{name}, {memory})")
    return " · ".join(parts)


def conditions(report: Report) -> str | None:
    """Return under which conditions the answer holds, in one line; None if nothing is known."""
    parts = []
    device = report.device
    if device is not None and device.context_bytes is not None:
        parts.append(f"context {format_bytes(device.context_bytes)} ({device.context_source})")
    if report.prediction is not None:
        parts.append(f"torch {report.prediction.torch_version}")
        parts.extend(f"{name} {value}" for name, value in report.prediction.allocator.items())
    return " · ".join(parts) or None


def recommended(report: Report) -> PrecisionResult | None:
    """Return the result that the recommendation is from; None without one."""
    recommendation = report.recommendation
    if recommendation is None:
        return None
    return next(
        result
        for result in report.results
        if result.precision == recommendation.precision and result.remedy is None
    )


def rows(report: Report) -> list[PrecisionResult]:
    """Return the rows of the table: remedies stand below the precision that they were tried in."""
    plain = [result for result in report.results if result.remedy is None]
    return [
        row
        for result in plain
        for row in (
            result,
            *(r for r in report.results if r.remedy and r.precision == result.precision),
        )
    ]


def label(result: PrecisionResult) -> str:
    """Return what a row is about: the precision, or `+ checkpointing`."""
    return result.precision if result.remedy is None else f"+ {result.remedy}"


def full_label(result: PrecisionResult) -> str:
    """Return what a result is about where no other row is above it: `amp-bf16 + checkpointing`."""
    return result.precision if result.remedy is None else f"{result.precision} + {result.remedy}"


def cells(result: PrecisionResult, report: Report) -> dict[str, str]:
    """Return the cells of a row of the comparison table, by column.

    A prediction knows no times: it has no columns for them.
    """
    ratio = speed_up(result, report.results)
    timed = {
        "samples/s": format_count(result.samples_per_s) if result.samples_per_s else _NOTHING,
        SPEED_UP: f"{ratio:.1f} x" if ratio else "",
    }
    instead = {"nothing_fits": "none", "error": "failed"}
    largest = instead.get(result.status) or _count(result.max_batch_size)
    return {
        "precision": label(result),
        "max batch": largest,
        "recommended": _count(result.recommended_batch_size),
        "peak allocated": _bytes(result.peak_allocated_bytes),
        "peak reserved": _bytes(result.peak_reserved_bytes),
        "of the card": _NOTHING
        if result.peak_fraction is None
        else percentage(result.peak_fraction),
        **({} if report.simulated else timed),
    }


def percentage(fraction: float) -> str:
    """Write a part of the card: `92%`, `<1%`."""
    return "<1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"


def title(column: str, report: Report) -> str:
    """Return what stands over a column of `cells`: speed-ups name what they are relative to."""
    if column != SPEED_UP:
        return column
    reference = baseline(report.results)
    return f"vs {reference.precision}" if reference else "vs fp32"


def _count(value: int | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    return _NOTHING if value is None else format_bytes(value)

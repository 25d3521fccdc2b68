"""The sentences of the report, which the table and Markdown share."""

from __future__ import annotations

from bsfind.recommend import baseline, saturation, speed_up
from bsfind.records import PrecisionResult, Report
from bsfind.units import format_bytes, format_count, format_parameters

__all__ = [
    "SPEED_UP",
    "accuracy",
    "answer",
    "cells",
    "conditions",
    "evidence",
    "foresight",
    "hints",
    "percentage",
    "problems",
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


def cells(result: PrecisionResult, report: Report) -> dict[str, str]:
    """Return the cells of a row of the comparison table, by column.

    A prediction knows no times: it has no columns for them.
    """
    ratio = speed_up(result, report.results)
    timed = {
        "samples/s": format_count(result.samples_per_s) if result.samples_per_s else _NOTHING,
        SPEED_UP: f"{ratio:.1f} x" if ratio else "",
    }
    largest = "none" if result.status == "nothing_fits" else _count(result.max_batch_size)
    return {
        "precision": result.precision,
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


def answer(report: Report) -> str | None:
    """Return the recommendation in one sentence; None if there is none."""
    recommendation = report.recommendation
    if recommendation is None:
        return None
    result = next(r for r in report.results if r.precision == recommendation.precision)
    verb = "Train" if report.workload["mode"] == "train" else "Infer"
    text = f"{verb} with batch size {recommendation.batch_size} in {recommendation.precision}"
    reasons = []
    ratio = speed_up(result, report.results)
    reference = baseline(report.results)
    if ratio is not None and reference is not None:
        reasons.append(f"{ratio:.1f} x the samples per second of {reference.precision}")
    if report.device is not None and result.peak_reserved_bytes is not None:
        left = report.device.capacity_bytes - result.peak_reserved_bytes
        reasons.append(f"{format_bytes(left)} left free")
    return f"{text}: {', '.join(reasons)}." if reasons else f"{text}."


def evidence(report: Report) -> str | None:
    """Return what the recommendation rests on; None if there is none."""
    if report.recommendation is None:
        return None
    result = next(r for r in report.results if r.precision == report.recommendation.precision)
    parts = []
    if report.simulated:
        steps = report.search["steps"]
        parts.append(f"Predicted, not run: {steps} steps, replayed within the budget.")
    elif result.confirmation is not None:
        parts.append(f"Confirmed: {result.confirmation.steps} steps in a fresh process.")
    else:
        parts.append("Not confirmed in a fresh process.")
    ran = "fits" if report.simulated else "ran"
    if result.smallest_failed_batch_size is not None:
        failed = next(t for t in result.trials if t.batch_size == result.smallest_failed_batch_size)
        what = {"oom": "ran out of memory", "timeout": "did not end in time", "error": "failed"}
        if report.simulated:
            what["oom"] = "runs out of memory"
        parts.append(
            f"{result.max_batch_size:,} {ran}, {failed.batch_size:,} {what[failed.status]}."
        )
    elif result.is_maximum_proven:
        parts.append(f"{result.max_batch_size:,} {ran}, the largest that was allowed.")
    else:
        parts.append(f"{result.max_batch_size:,} {ran}, more may fit.")
    return " ".join(parts)


def accuracy(report: Report) -> str | None:
    """Return how exact a prediction is, in one line; None if nothing was predicted."""
    prediction = report.prediction
    if prediction is None or prediction.model_kind is None:
        return None
    kind = f"{prediction.model_kind} models"
    if prediction.model_kind == "other":
        kind = "models without convolutions, recurrence or attention"
    measured = prediction.accuracy
    if measured is None:
        return f"Error bound for {kind}: not measured."
    allocated, reserved = measured.allocated, measured.reserved
    return (
        f"Error bound for {kind}: peak allocated {_error(allocated.median)} (median) and "
        f"{_error(allocated.p95)} (95th percentile), peak reserved {_error(reserved.median)} and "
        f"{_error(reserved.p95)}, in {measured.runs} runs against {measured.against}."
    )


def _error(part: float) -> str:
    """Write an error as a part of what is right: `0.02 %`, `3.1 %`."""
    return f"{part * 100:.2g} %" if part else "0 %"


def foresight(report: Report) -> str | None:
    """Return what was predicted against what was measured; None if nothing was, or nothing ran."""
    if report.simulated or report.recommendation is None:
        return None
    result = next(r for r in report.results if r.precision == report.recommendation.precision)
    predicted = result.predicted
    if predicted is None:
        return None
    text = f"Predicted beforehand: {predicted.max_batch_size:,} at most"
    if predicted.peak_reserved_bytes is not None:
        text += f", peak reserved {format_bytes(predicted.peak_reserved_bytes)}"
        if predicted.recommended_batch_size != result.recommended_batch_size:
            text += f" at batch size {predicted.recommended_batch_size:,}"
    measured = f"measured: {_count(result.max_batch_size)}, {_bytes(result.peak_reserved_bytes)}"
    return f"{text}; {measured}."


def problems(report: Report) -> list[str]:
    """Return why a precision has no answer, one line each."""
    return [
        f"{result.precision}: {result.message}"
        for result in report.results
        if result.message and result.recommended_batch_size is None
    ]


def hints(report: Report) -> list[str]:
    """Return what could be done next; only what is not done already."""
    if report.recommendation is None:
        if any(result.status in ("nothing_fits", "ok") for result in report.results):
            return _remedies(report)
        return []
    result = next(r for r in report.results if r.precision == report.recommendation.precision)
    enough = saturation(
        [t for t in result.trials if t.batch_size <= report.recommendation.batch_size]
    )
    if enough is not None and enough.batch_size < report.recommendation.batch_size:
        return [f"throughput is within 2 % of its best from batch size {enough.batch_size} on"]
    return []


def _remedies(report: Report) -> list[str]:
    """Return what makes more fit, in the order of what it costs."""
    tried = {result.precision for result in report.results}
    workload = report.workload
    remedies = []
    if not any(result.trials for result in report.results):
        if "bf16" not in tried:
            remedies.append("the model in half precision takes half the memory: `--precision bf16`")
        remedies.append(
            "a model that does not fit alone needs a larger GPU, or to be sharded (FSDP)"
        )
        return remedies
    if not any(trial.status == "oom" for result in report.results for trial in result.trials):
        return []
    if not tried & {"amp-fp16", "amp-bf16", "bf16"}:
        remedies.append("mixed precision may make it fit: `--precision amp`")
    training = workload["mode"] == "train"
    if training and not workload["grad_checkpoint"]:
        remedies.append("recomputing activations saves memory for time: `--grad-checkpoint`")
    smallest = report.search["min_batch_size"]
    if smallest > 1:
        remedies.append(f"a smaller batch may fit: `--min-batch-size {max(1, smallest // 2)}`")
    if training and workload["optimizer"].lower() in ("adam", "adamw"):
        remedies.append("an optimizer with less state saves memory: `--optimizer sgd`")
    remedies.append("smaller inputs need less memory: `--input-shape`, `--input`")
    return remedies

"""Names and figures as people read them: what the screens, Markdown, HTML and pictures share."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from bsfind.inspect.inspection import PrecisionInspection
from bsfind.parallel import NAMES
from bsfind.records import Assumption
from bsfind.report.visible import visible
from bsfind.results import PrecisionResult, Report
from bsfind.search.variants import row_name
from bsfind.trial import Trial
from bsfind.units import format_bytes, format_parameters

_NAMING_ARGUMENTS = ("model_name", "name", "arch", "architecture", "variant", "model")
"""Keyword arguments that name the model to a factory."""

_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict", "DataParallel", "OptimizedModule")
"""Classes whose names say nothing about the model."""


UNFINISHED = "the search is not complete"
"""The message of a partial report that has none: of one that goes on."""


def model_name(workload: Mapping[str, Any], class_name: str | None) -> str:
    """Return the name of the model: `resnet50 (timm:create_model)`, `zoo:resnet50`.

    It is the target where the class has the same name. Where a factory makes the model, the name that
    the factory was given, or else the class, stands in front.

    Args:
        workload: `workload` of the report.
        class_name: the model's class; None if it is not known.
    """
    target = str(workload["target"])
    given = workload.get("model_args", {})
    names = (
        given[key] for key in _NAMING_ARGUMENTS if re.fullmatch(r"[\w./-]+", given.get(key, ""))
    )
    attribute = target.rpartition(":")[2].replace("_", "").lower()
    name = next(names, None)
    if name is None and class_name is not None and class_name not in _CONTAINERS:
        plain = class_name.replace("_", "").lower()
        name = None if plain in attribute or attribute in plain else class_name
    return target if name is None else f"{name} ({target})"


def trained_loss(workload: Mapping[str, Any], assumptions: Iterable[Assumption]) -> str | None:
    """Return the loss that is trained, in a few words; None in inference, or where it is not known yet.

    Args:
        workload: `workload` of the report.
        assumptions: `assumptions` of the report, which name the loss that bsfind chose.
    """
    if workload["mode"] != "train":
        return None
    chosen = next((made.value for made in assumptions if made.what == "loss"), None)
    if chosen is not None:
        return chosen
    if workload.get("step") is not None:
        return f"step {workload['step']}"
    asked = str(workload.get("loss", "auto"))
    if asked == "auto":
        return None
    return f"loss {asked}" if ":" in asked else asked


def target(report: Report) -> str:
    """Return what was asked about: the import path of the model, or the command that was launched."""
    if report.launch is not None:
        return shlex.join(report.launch["command"])
    return str(report.workload["target"])


def is_training(report: Report) -> bool:
    """Tell whether the steps are training steps: those of a launched command are."""
    return report.launch is not None or report.workload["mode"] == "train"


def subject(report: Report) -> str:
    """Return the model, what is done with it, and the device, in one line."""
    parts = [target(report)] if report.launch is not None else _model(report)
    doing = "training and evaluation" if report.workload.get("with_eval") else "training"
    parts.append(doing if is_training(report) else "inference")
    if report.axis is not None:
        parts.append(f"batch size {report.workload['axis']['batch_size']:,}")
    device = report.device
    if device is not None:
        memory = f"{format_bytes(device.total_bytes)} ({format_bytes(device.free_bytes)} free"
        if device.capacity_bytes < device.free_bytes:
            memory += f", limited to {format_bytes(device.capacity_bytes)}"
        name = f"simulated {device.name}" if report.simulated else device.name
        if report.parallel is not None:
            how, ranks = NAMES.get(report.parallel["strategy"]), report.parallel["world_size"]
            parts[-1] += f" with {how or report.parallel['strategy']}"
            name = f"{ranks:,} × {name}"
        parts.append(f"{name}, {memory})")
    return " · ".join(parts)


def _model(report: Report) -> list[str]:
    """Return what the model is, and the loss that is trained."""
    model = report.model
    parts = [model_name(report.workload, model.class_name if model else None)]
    if model is not None:
        parts.append(f"{format_parameters(model.parameters)} parameters")
        if model.optimizer is not None:
            parts.append(model.optimizer)
    loss = trained_loss(report.workload, report.assumptions)
    return parts if loss is None else [*parts, loss]


def conditions(report: Report) -> str | None:
    """Return the conditions under which the answer holds, in one line; None if none is known."""
    parts = []
    device = report.device
    if device is not None and device.context_bytes is not None:
        parts.append(f"context {format_bytes(device.context_bytes)} ({device.context_source})")
    if device is not None and device.nccl_bytes is not None:
        parts.append(f"NCCL {format_bytes(device.nccl_bytes)} ({device.nccl_source})")
    if report.prediction is not None:
        parts.append(f"torch {report.prediction.torch_version}")
        parts.extend(f"{name} {value}" for name, value in report.prediction.allocator.items())
    return " · ".join(parts) or None


_IN_THE_SUBJECT = ("loss", "optimizer", "GPU")
"""Assumptions whose values the first line shows."""


def assumed(assumptions: Iterable[Assumption]) -> str | None:
    """Return what bsfind assumed, in one line; None if nothing was assumed."""
    parts = [
        made.what if made.what in _IN_THE_SUBJECT else f"{made.what} ({made.value})"
        for made in assumptions
    ]
    return f"assumed: {', '.join(parts)}" if parts else None


def heading(report: Report) -> list[str]:
    """Return the first lines of a report: the subject, the conditions, and what was assumed."""
    lines = (subject(report), conditions(report), assumed(report.assumptions))
    return [line for line in lines if line is not None]


def recommended(report: Report) -> PrecisionResult | None:
    """Return the result that the recommendation is from; None without one."""
    recommendation = report.recommendation
    if recommendation is None:
        return None
    return next(
        result
        for result in report.results
        if (result.precision, result.seq_len, result.remedy)
        == (recommendation.precision, recommendation.seq_len, None)
    )


def recommended_trial(result: PrecisionResult) -> Trial | None:
    """Return the trial of the recommended size: its confirmation, or the last; None without one."""
    size = result.recommended_size
    last = next((trial for trial in reversed(result.trials) if trial.size == size), None)
    return result.confirmation or last


def rows(report: Report) -> list[PrecisionResult]:
    """Return the rows of the table: variants stand below the plain row that they change."""
    plain = [result for result in report.results if result.remedy is None]
    return [
        row
        for result in plain
        for row in (
            result,
            *(r for r in report.results if r.remedy and row_of(r) == row_of(result)),
        )
    ]


def row_of(result: PrecisionResult) -> tuple[str, int | None]:
    """Return what tells a plain row from the others: the precision, and which of several lengths."""
    return result.precision, result.seq_len


def lengths(report: Report) -> list[int | None]:
    """Return the lengths that the rows are at; [None] where there are not several."""
    return list(dict.fromkeys(result.seq_len for result in report.results))


def precision(result: PrecisionResult | PrecisionInspection) -> str:
    """Return the precision, with the dtype of the weights where it does not say it."""
    weights = result.weights_dtype
    if weights is None:
        return result.precision
    return visible(f"{result.precision}, weights {weights}")


def label(result: PrecisionResult) -> str:
    """Return the label of a row: the precision, or `+ checkpointing`."""
    return precision(result) if result.remedy is None else f"+ {result.remedy}"


def full_label(result: PrecisionResult) -> str:
    """Return the label of a result outside the table: `amp-bf16 at 512 tokens + checkpointing`."""
    name = row_name(precision(result), result.seq_len)
    return name if result.remedy is None else f"{name} + {result.remedy}"


def in_which(result: PrecisionResult, report: Report) -> str:
    """Return the precision or the variant of an answer: ` in amp-bf16`, ` (variant amp)`."""
    if report.launch is None:
        return f" in {full_label(result)}"
    return f" (variant {result.precision})" if report.launch["variants"] else ""


def percentage(fraction: float) -> str:
    """Write a fraction of the GPU's memory: `92%`, `<1%`."""
    return "<1%" if 0 < fraction < 0.005 else f"{fraction:.0%}"

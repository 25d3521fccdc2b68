"""From what is known so far to a report: the recommendation, and what the answer rests on."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Sequence
from typing import Any

from bsfind import __version__
from bsfind.recommend import recommend
from bsfind.records import (
    DeviceInfo,
    ModelInfo,
    PrecisionResult,
    Prediction,
    Recommendation,
    Report,
    ReportStatus,
    ReportWarning,
)
from bsfind.settings import Settings
from bsfind.simulation.accuracy import measured_accuracy
from bsfind.simulation.allocator_settings import AllocatorSettings

__all__ = ["report_of"]

_ENVIRONMENT_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUDA_MODULE_LOADING",
    "NVIDIA_TF32_OVERRIDE",
)


def report_of(
    settings: Settings,
    command: Sequence[str],
    device: DeviceInfo | None,
    model: ModelInfo | None,
    results: Sequence[PrecisionResult],
    warnings: Sequence[ReportWarning],
    *,
    status: ReportStatus,
    message: str | None,
    may_recommend: bool = True,
    duration_s: float,
) -> Report:
    """Return the report on a search, finished or not.

    Args:
        settings: what was asked for.
        command: the command line.
        device: that answered; None before one was opened.
        model: as it was loaded; None before it was.
        results: by precision, and by remedy.
        warnings: what the reader must know.
        status: of the search.
        message: what ended it, if it did not end by itself.
        may_recommend: whether a size can be recommended: not where an error or a signal broke it off.
        duration_s: seconds since the start.
    """
    recommendation = recommend(results, settings.limits.objective) if may_recommend else None
    if recommendation is not None:
        check = shlex.join(["bsfind", *_check(settings, recommendation).to_argv()])
        recommendation = dataclasses.replace(recommendation, check=check)
    budget = None
    headroom = None
    if device is not None:
        headroom = settings.limits.headroom.of(device.capacity_bytes)
        budget = settings.limits.headroom.leaves(device.capacity_bytes)
    return Report(
        bsfind_version=__version__,
        status=status,
        command=tuple(command),
        reproduce=shlex.join(["bsfind", *settings.to_argv()]),
        device=device,
        budget_bytes=budget,
        model=model,
        prediction=_prediction(device, model),
        workload=settings.workload.to_json(),
        search={
            **settings.limits.to_json(),
            **settings.device.to_json(),
            "headroom_bytes": headroom,
            "precisions": list(settings.precisions),
            "compare": list(settings.compare),
            "batch_size": settings.batch_size,
        },
        results=tuple(results),
        recommendation=recommendation,
        warnings=tuple(warnings),
        environment=_environment(device),
        duration_s=duration_s,
        message=message,
    )


def _check(settings: Settings, recommendation: Recommendation) -> Settings:
    """Return the settings of a `check` that tries what is recommended."""
    workload, parts = settings.workload, recommendation.global_batch
    if parts is not None:
        workload = dataclasses.replace(workload, grad_accum=parts.accumulation_steps)
    return dataclasses.replace(
        settings,
        workload=workload,
        precisions=(recommendation.precision,),
        batch_size=recommendation.batch_size,
    )


def _prediction(device: DeviceInfo | None, model: ModelInfo | None) -> Prediction | None:
    """Return what a predicted report rests on; None if nothing is predicted."""
    if device is None or device.kind != "simulated":
        return None
    # A build without CUDA (`2.13.0+cpu`) stands for its sibling with CUDA.
    version = (device.torch_version or "").partition("+")[0]
    kind = model.kind if model else None
    return Prediction(
        torch_version=version,
        allocator=AllocatorSettings.from_environment(os.environ, version).changed(),
        model_kind=kind,
        accuracy=measured_accuracy(kind) if kind else None,
    )


def _environment(device: DeviceInfo | None) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": device.torch_version if device else None,
        "cuda": device.cuda_version if device else None,
        "variables": {
            name: os.environ[name] for name in _ENVIRONMENT_VARIABLES if name in os.environ
        },
    }

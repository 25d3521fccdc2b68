"""From what is known so far to a report: the recommendation, and what the answer rests on."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from bsfind import __version__
from bsfind.inputs import InputSpec
from bsfind.records import (
    Assumption,
    DeviceInfo,
    ModelInfo,
    OutputMemory,
    PrecisionResult,
    Prediction,
    Recommendation,
    Report,
    ReportStatus,
    ReportWarning,
)
from bsfind.search.recommend import recommend
from bsfind.settings import Settings
from bsfind.simulation.allocator.settings import AllocatorSettings
from bsfind.simulation.gpus.accuracy import measured
from bsfind.units import format_bytes

_ENVIRONMENT_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUDA_MODULE_LOADING",
    "NVIDIA_TF32_OVERRIDE",
)


_LARGE_OUTPUT = 0.02
"""Share of the peak from which on it matters how long a loop keeps the output."""


def report_of(
    settings: Settings,
    command: Sequence[str],
    device: DeviceInfo | None,
    model: ModelInfo | None,
    results: Sequence[PrecisionResult],
    warnings: Sequence[ReportWarning],
    assumptions: Sequence[Assumption],
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
        assumptions: what the worker has chosen for the steps.
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
        assumptions=assumptions_of(
            settings, device, model.optimizer if model else None, assumptions
        ),
        warnings=tuple(warnings),
        environment=_environment(device),
        duration_s=duration_s,
        message=message,
    )


def assumptions_of(
    settings: Settings,
    device: DeviceInfo | None,
    optimizer: str | None,
    of_the_steps: Sequence[Assumption],
) -> tuple[Assumption, ...]:
    """Return what the user did not say and bsfind chose, as far as it bears on the answer.

    Args:
        settings: what was asked for.
        device: that answered; None before one was opened.
        optimizer: class of the optimizer; None in inference, or before the model was loaded.
        of_the_steps: what the worker has chosen for the steps.
    """
    made = list(of_the_steps)
    is_told = any(assumption.what == "optimizer" for assumption in made)
    if optimizer is not None and "optimizer" not in settings.given and not is_told:
        made.append(
            Assumption(
                what="optimizer",
                value=optimizer,
                why="no optimizer was named, and most models are trained with this one; "
                "`--optimizer` names another",
            )
        )
    for number, spec in enumerate(settings.workload.inputs, 1):
        made.extend(_of_input(spec, number))
    if settings.device.is_simulated and "gpu" not in settings.given and device is not None:
        made.append(
            Assumption(
                what="GPU",
                value=device.name,
                why="no GPU was named, and none is measured; `--gpu` names another",
            )
        )
    return tuple(made)


def stand_in_warning(
    output: OutputMemory | None, batch_size: int | None, peak_bytes: int | None
) -> ReportWarning | None:
    """Return the warning that a mean stands in for a loss that is not known; None if none does.

    Args:
        output: what the model returned to the loss; None: it is not known.
        batch_size: at which the peak is known; None: nowhere.
        peak_bytes: allocated there.
    """
    if output is None or not output.is_stand_in:
        return None
    message = "no loss is known for the model's output: its mean is trained, a stand-in"
    if batch_size is not None and peak_bytes:
        size = output.bytes_per_sample * batch_size
        share = size / peak_bytes
        percent = "<1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
        message += (
            f"; at batch size {batch_size:,} the output is {format_bytes(size)} of the peak of "
            f"{format_bytes(peak_bytes)} ({percent}), of which the real loss may keep several copies"
        )
    return ReportWarning(
        code="loss_stand_in",
        message=message,
        hint="name the loss: `--loss cross-entropy`, `--loss mse` or `--loss pkg.mod:fn`, called as "
        "`fn(output)`; or the whole step: `--step pkg.mod:fn`",
    )


def assumption_of_output(
    output: OutputMemory | None, batch_size: int | None, peak_bytes: int | None
) -> Assumption | None:
    """Return what is assumed of the model's output after the loss; None where that matters little.

    Args:
        output: what the model returned to the loss; None: it is not known.
        batch_size: at which the peak is known; None: nowhere.
        peak_bytes: allocated there.
    """
    if output is None or batch_size is None or not peak_bytes:
        return None
    size = output.bytes_per_sample * batch_size
    if size < _LARGE_OUTPUT * peak_bytes:
        return None
    return Assumption(
        what="outputs",
        value="released before the backward pass",
        why="a loop that keeps a reference to them (`logits, loss = model(x, y)`) needs up to "
        f"{format_bytes(size)} more at batch size {batch_size:,}",
    )


def _of_input(spec: InputSpec, number: int) -> Iterator[Assumption]:
    name = f"input {number}" if spec.name is None else f"input `{spec.name}`"
    if "dtype" in spec.assumed:
        why = "no dtype was given; write one behind the shape: `128:int64`"
        yield Assumption(what=f"dtype of {name}", value=spec.dtype, why=why)
    if "range" in spec.assumed:
        yield Assumption(
            what=f"values of {name}",
            value=f"{spec.low}..{spec.high}",
            why="no range was given, and 0 and 1 are valid in every vocabulary; write one behind the "
            f"dtype: `{spec.dtype}:0..30522`",
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
        accuracy=measured().accuracy(kind, version) if kind else None,
        no_accuracy_because=measured().why_not(kind, version) if kind else None,
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

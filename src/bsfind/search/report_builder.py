"""From what is known to results and to the report: functions of immutable states."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bsfind import __version__
from bsfind.errors import BsfindError, NoDeviceError, TimeLimitError
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
    Trial,
)
from bsfind.search.accepted_sizes import Multiples
from bsfind.search.assumptions import assumption_of_output, assumptions_of, stand_in_warning
from bsfind.search.recommend import best_that_leaves, recommend
from bsfind.search.throughput import saturation
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


@dataclass(frozen=True, kw_only=True)
class PrecisionState:
    """What is known of the search in one precision.

    Attributes:
        found: what the search has found itself; `confirmation` is the trial of the recommended size.
        settings: what was asked for.
        device: the device that the trials run on.
        leaking: the trial that showed a leak.
        is_out_of_time: whether a limit ended the search.
        has_failed: whether every size that was to be confirmed failed.
        has_failed_late: whether some of them failed later than a trial of the search could see.
        smallest_useful: the smallest size that the limits allow and the model accepts.
    """

    found: PrecisionResult
    settings: Settings
    device: DeviceInfo
    leaking: Trial | None
    is_out_of_time: bool
    has_failed: bool
    has_failed_late: bool
    smallest_useful: int


def result_of(state: PrecisionState) -> PrecisionResult:
    """Return the result in one precision: what was found, and what follows from it."""
    found, confirmed, leaking = state.found, state.found.confirmation, state.leaking
    trials = found.trials
    if confirmed is not None and not any(
        trial.batch_size == confirmed.batch_size and trial.status == "ok" for trial in trials
    ):
        trials = (*trials, confirmed)
    if leaking is not None and leaking not in (*trials, *found.timings):
        trials = (*trials, leaking)
    ran = [trial for trial in trials if trial.status == "ok"]
    largest = max(ran, key=lambda trial: trial.batch_size, default=None)
    enough = saturation([*ran, *(trial for trial in found.timings if trial.status == "ok")])
    # Nothing runs on a simulated device: nothing is confirmed.
    is_confirmed = confirmed is not None and state.device.kind == "cuda"
    result = dataclasses.replace(
        found,
        max_batch_size=largest.batch_size if largest else None,
        is_maximum_proven=found.is_maximum_proven and any(t.status == "ok" for t in found.trials),
        verified=is_confirmed,
        confirmation=confirmed if is_confirmed else None,
        saturation_batch_size=enough.batch_size if enough else None,
        leak=leaking.leak if leaking else None,
        trials=trials,
    )
    shown = _recommended_trial(state)
    if shown is None:
        return dataclasses.replace(result, message=found.message or _why_nothing_holds(state))
    allocated, reserved = shown.peak_allocated_bytes, shown.peak_reserved_bytes
    return dataclasses.replace(
        result,
        recommended_batch_size=shown.batch_size,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        fragmentation_bytes=None if reserved is None or allocated is None else reserved - allocated,
        peak_fraction=reserved / state.device.total_bytes if reserved else None,
        samples_per_s=shown.samples_per_s,
        step_time_s=shown.step_time_s,
    )


def _recommended_trial(state: PrecisionState) -> Trial | None:
    """Return the trial of the recommended size: confirmed, or the largest that ran within the budget.

    If an error broke the search off, nothing is recommended; if time was over, what ran is.
    """
    found, settings = state.found, state.settings
    if found.status != "ok" and not state.is_out_of_time:
        return None
    if found.confirmation is not None:
        return found.confirmation
    if state.leaking is not None or state.has_failed:
        return None
    budget, multiple = state.device.capacity_bytes, 1
    if settings.batch_size is None:  # not a check
        budget, multiple = settings.limits.headroom.leaves(budget), settings.limits.multiple_of
    return best_that_leaves(found.trials, budget, Multiples(multiple))


def _why_nothing_holds(state: PrecisionState) -> str | None:
    """Return why a size ran and none is recommended; None if none ran."""
    if state.found.status != "ok":
        return None
    best = max(trial.batch_size for trial in state.found.trials if trial.status == "ok")
    limits = state.settings.limits
    budget = format_bytes(limits.headroom.leaves(state.device.capacity_bytes))
    if state.has_failed_late:
        return (
            f"batch size {best} runs, but none that was tried runs on for {limits.confirm_steps} "
            f"steps within the budget of {budget}"
        )
    return (
        f"batch size {best} runs, but none from {state.smallest_useful} on runs within the budget "
        f"of {budget} (the headroom stays free)"
    )


@dataclass(frozen=True, kw_only=True)
class SearchState:
    """What is known of a whole search.

    Attributes:
        settings: what was asked for, with the device that was opened.
        results: results by precision, and by remedy.
        warnings: what the reader must know.
        assumptions: what the workers have chosen for the steps.
        output: what the model returned to a loss of bsfind's; None: unknown.
        errors: what ended the search before it had an answer.
        stopped_by: what ended it from outside: `interrupted`, say.
        is_finished: whether every precision was searched.
        duration_s: seconds since the start.
    """

    settings: Settings
    command: tuple[str, ...]
    device: DeviceInfo | None
    model: ModelInfo | None
    results: tuple[PrecisionResult, ...]
    warnings: tuple[ReportWarning, ...]
    assumptions: tuple[Assumption, ...]
    output: OutputMemory | None
    errors: tuple[BsfindError, ...]
    stopped_by: str | None
    is_finished: bool
    duration_s: float


def report_of(state: SearchState) -> Report:
    """Return the report on a search, finished or not."""
    settings, device, model = state.settings, state.device, state.model
    recommendation = None
    # An error or a signal that broke it off leaves nothing to recommend; a time limit does.
    if state.stopped_by is None and all(isinstance(e, TimeLimitError) for e in state.errors):
        recommendation = recommend(state.results, settings.limits.objective)
    if recommendation is not None:
        check = shlex.join(["bsfind", *_check(settings, recommendation).to_argv()])
        recommendation = dataclasses.replace(recommendation, check=check)
    headroom = settings.limits.headroom
    capacity = device.capacity_bytes if device is not None else None
    trial = _trial_of_the_answer(state)
    size_and_peak = (trial.batch_size, trial.peak_allocated_bytes) if trial else (None, None)
    stand_in = stand_in_warning(state.output, *size_and_peak)
    of_output = assumption_of_output(state.output, *size_and_peak)
    chosen = dict.fromkeys((*state.assumptions, *((of_output,) if of_output else ())))
    return Report(
        bsfind_version=__version__,
        status=_status(state),
        command=state.command,
        reproduce=shlex.join(["bsfind", *settings.to_argv()]),
        device=device,
        budget_bytes=None if capacity is None else headroom.leaves(capacity),
        model=model,
        prediction=_prediction(device, model),
        workload=settings.workload.to_json(),
        search={
            **settings.limits.to_json(),
            **settings.device.to_json(),
            "headroom_bytes": None if capacity is None else headroom.of(capacity),
            "precisions": list(settings.precisions),
            "compare": list(settings.compare),
            "batch_size": settings.batch_size,
        },
        results=state.results,
        recommendation=recommendation,
        assumptions=assumptions_of(
            settings, device, model.optimizer if model else None, list(chosen)
        ),
        warnings=(*state.warnings, *((stand_in,) if stand_in else ())),
        environment=_environment(device),
        duration_s=state.duration_s,
        message=state.stopped_by or (state.errors[0].message if state.errors else None),
    )


def is_answered(results: Sequence[PrecisionResult]) -> bool:
    """Tell whether a precision gave an answer, if only a size that ran before time was over."""
    return any(
        result.remedy is None
        and (
            result.status in ("ok", "nothing_fits")
            or (result.status == "unfinished" and result.max_batch_size is not None)
        )
        for result in results
    )


def _status(state: SearchState) -> ReportStatus:
    fatal = [error for error in state.errors if not isinstance(error, TimeLimitError)]
    if fatal and not is_answered(state.results):
        lost_gpu = any(isinstance(error, NoDeviceError) for error in fatal)
        has_run = any(result.max_batch_size is not None for result in state.results)
        return "partial" if lost_gpu and has_run else "failed"
    timed_out = any(t.status == "timeout" for result in state.results for t in result.trials)
    return "complete" if state.is_finished and not timed_out else "partial"


def _trial_of_the_answer(state: SearchState) -> Trial | None:
    """Return the trial of the recommended batch size, or the last that ran; None if none did."""
    best = recommend(state.results, state.settings.limits.objective)
    if best is None:
        trials = [t for r in state.results for t in r.trials if t.status == "ok"]
    else:
        trials = [
            trial
            for result in state.results
            if (result.precision, result.remedy) == (best.precision, None)
            for trial in result.trials
            if trial.batch_size == best.batch_size
        ]
    return trials[-1] if trials else None


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

"""From what is known to results and to the report: functions of immutable states."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsfind import __version__
from bsfind.errors import BsfindError, InternalError, NoDeviceError, TimeLimitError
from bsfind.inputs import InputSpec
from bsfind.launch.placeholders import fill, trackers_off
from bsfind.option_fields import arguments_of
from bsfind.parallel import Parallel
from bsfind.records import (
    ALL_ASKED,
    Assumption,
    DeviceInfo,
    ModelInfo,
    ModelKind,
    OutputMemory,
    Prediction,
    ReportWarning,
)
from bsfind.results import (
    LAUNCHED,
    GpusNeeded,
    PrecisionResult,
    Recommendation,
    Report,
    ReportStatus,
)
from bsfind.search.accepted_sizes import Multiples
from bsfind.search.assumptions import (
    assumption_of_output,
    assumptions_of,
    late_buckets,
    short_batch,
    stand_in_warning,
    varying_batches,
    with_proposed_inputs,
)
from bsfind.search.axis import recommendation_on, result_on
from bsfind.search.recommend import best_that_leaves, recommend
from bsfind.search.throughput import saturation
from bsfind.search.variants import at_length, lengths_of
from bsfind.settings import Launch, Settings
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.simulation.gpus.accuracy import measured
from bsfind.trial import Trial
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
    is_measured = state.device.kind == "cuda"
    if confirmed is not None:
        same = [t for t in trials if t.batch_size == confirmed.batch_size and t.status == "ok"]
        if not is_measured:  # it has replayed more steps than the search did
            trials = tuple(trial for trial in trials if trial not in same)
        if not is_measured or not same:
            trials = (*trials, confirmed)
    if leaking is not None and leaking not in (*trials, *found.timings):
        trials = (*trials, leaking)
    ran = [trial for trial in trials if trial.status == "ok"]
    largest = max(ran, key=lambda trial: trial.batch_size, default=None)
    timed = [*ran, *(trial for trial in found.timings if trial.status == "ok")]
    # Neither sizes of what is launched nor those along an axis are timed for their speed.
    is_timed = not state.settings.is_launched and state.settings.workload.axis is None
    enough = saturation(timed) if is_timed else None
    # Nothing runs on a simulated device: nothing is confirmed.
    is_confirmed = confirmed is not None and is_measured
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
    total = (shown.limiting or state.device).total_bytes
    return dataclasses.replace(
        result,
        recommended_batch_size=shown.batch_size,
        global_batch_size=_global_batch_size(state, shown),
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        fragmentation_bytes=None if reserved is None or allocated is None else reserved - allocated,
        peak_fraction=reserved / total if reserved else None,
        samples_per_s=shown.samples_per_s,
        step_time_s=shown.step_time_s,
    )


def _global_batch_size(state: PrecisionState, trial: Trial) -> int | None:
    """Return the samples of all ranks in each optimizer step; None where one GPU trains."""
    workload, parts = state.settings.workload, state.found.global_batch
    if not workload.parallel.is_used:
        return None
    if parts is not None:
        return parts.reached
    samples = workload.samples(trial.batch_size)
    return samples * workload.grad_accum * workload.parallel.world_size


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
    limits, searched = state.settings.limits, state.settings.workload.searched
    budget = format_bytes(limits.headroom.leaves(state.device.capacity_bytes))
    if state.has_failed_late:
        return (
            f"{searched} {best} runs, but none that was tried runs on for {limits.confirm_steps} "
            f"steps within the budget of {budget}"
        )
    return (
        f"{searched} {best} runs, but none from {state.smallest_useful} on runs within the budget "
        f"of {budget} (the headroom stays free)"
    )


@dataclass(frozen=True, kw_only=True)
class SearchState:
    """What is known of a whole search.

    Attributes:
        settings: what was asked for, with the device that was opened.
        needed: how many GPUs it would take; None where that was not looked for.
        results: results by length, precision and remedy.
        warnings: what the reader must know.
        assumptions: what the workers have chosen for the steps.
        inputs: the inputs that follow from the model; none where they were described.
        convolution_workspaces: what those of a launched command rest on; None: there were none.
        output: what the model returned to a loss of bsfind's; None: unknown.
        errors: what ended the search before it had an answer.
        stopped_by: what ended it from outside: `interrupted`, say.
        logs: folder of what a launched command printed; None without one.
        is_finished: whether every precision was searched.
        duration_s: seconds since the start.
    """

    settings: Settings
    command: tuple[str, ...]
    device: DeviceInfo | None
    needed: GpusNeeded | None
    model: ModelInfo | None
    results: tuple[PrecisionResult, ...]
    warnings: tuple[ReportWarning, ...]
    assumptions: tuple[Assumption, ...]
    inputs: tuple[InputSpec, ...]
    convolution_workspaces: str | None
    output: OutputMemory | None
    errors: tuple[BsfindError, ...]
    stopped_by: str | None
    logs: Path | None
    is_finished: bool
    duration_s: float


def report_of(state: SearchState) -> Report:
    """Return the report on a search, finished or not."""
    settings = with_proposed_inputs(state.settings, state.inputs)
    device, model, axis = state.device, state.model, settings.workload.axis
    recommendation, results = None, state.results
    if any(isinstance(error, InternalError) for error in state.errors):
        # A bug in bsfind: no row can be relied on.
        results = tuple(dataclasses.replace(r, recommended_batch_size=None) for r in results)
    # An error or a signal that broke it off leaves nothing to recommend; a time limit does.
    if state.stopped_by is None and all(isinstance(e, TimeLimitError) for e in state.errors):
        recommendation = _best(state)
    if recommendation is not None:
        check = _command_that_tries(settings, recommendation)
        recommendation = dataclasses.replace(recommendation_on(axis, recommendation), check=check)
    headroom = settings.limits.headroom
    capacity = device.capacity_bytes if device is not None else None
    trial = _trial_of_the_answer(state)
    size, peak = (trial.batch_size, trial.peak_allocated_bytes) if trial else (None, None)
    searched = settings.workload.searched
    stand_in = stand_in_warning(state.output, size, peak, searched, assumptions=state.assumptions)
    of_output = assumption_of_output(state.output, size, peak, searched)
    vary = varying_batches(settings.workload, trial)
    trials = [t for r in state.results if r.max_batch_size for t in r.trials]
    short = short_batch(trials, settings.workload)
    late = late_buckets(trial, settings)
    said = [pair for pair in (short, vary) if pair is not None]
    more_warnings = [warning for warning in (stand_in, late) if warning is not None]
    more_warnings += [warning for warning, _ in said]
    more_assumptions = [*(made for _, made in said), *([of_output] if of_output else [])]
    made = (*state.assumptions, *more_assumptions)
    # Shapes in them are those of the last trial, where an axis is searched.
    chosen = dict.fromkeys(made if axis is None else {each.what: each for each in made}.values())
    stepped = next((made.value for made in chosen if made.what == "optimizer"), None)
    if model is not None and stepped is not None:  # not the one that was made when it was loaded
        model = dataclasses.replace(model, optimizer=stepped)
    return Report(
        bsfind_version=__version__,
        status=_status(state),
        command=state.command,
        reproduce=shlex.join(["bsfind", *arguments_of(settings)]),
        device=device,
        budget_bytes=None if capacity is None else headroom.leaves(capacity),
        model=model,
        prediction=_prediction(state),
        workload={} if settings.launch is not None else settings.workload.to_json(),
        parallel=_parallel(settings, device, state.results),
        gpus_needed=state.needed,
        launch=_launch(settings.launch, state.logs),
        search={
            **settings.limits.to_json(),
            "world_size": settings.parallel.world_size,
            **settings.device.to_json(),
            "headroom_bytes": None if capacity is None else headroom.of(capacity),
            "precisions": [LAUNCHED] if settings.launch else list(settings.precisions),
            "seq_lens": list(settings.seq_lens),
            "compare": list(settings.compare),
            "batch_size": settings.batch_size,
        },
        results=tuple(result_on(axis, result) for result in results),
        recommendation=recommendation,
        assumptions=assumptions_of(
            settings, device, model.optimizer if model else None, list(chosen)
        ),
        warnings=(*state.warnings, *more_warnings),
        environment=_environment(device),
        duration_s=state.duration_s,
        message=state.stopped_by
        or (state.errors[0].message if state.errors else _why_ended_early(state.results)),
    )


def _parallel(
    settings: Settings, device: DeviceInfo | None, results: Sequence[PrecisionResult]
) -> dict[str, Any] | None:
    """Return how several GPUs share the training; None where there is one."""
    parallel = settings.parallel
    if not parallel.is_used:
        return None
    found = parallel.to_json()
    on_all = found.pop("nproc_per_node") is not None
    del found["rank"]
    trials = (trial for result in results for trial in result.trials)
    ranks = sorted({t.limiting_rank for t in trials if t.limiting_rank is not None})
    found["options"] = found.pop("arguments")
    mode = None
    if device is not None:
        mode = "predicted" if device.kind == "simulated" else "measured" if on_all else "one_rank"
    return {
        **found,
        "mode": mode,
        "ranks_run": list(range(parallel.world_size)) if on_all else ranks,
    }


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
    is_whole = state.is_finished and _why_ended_early(state.results) is None
    return "complete" if is_whole else "partial"


def _why_ended_early(results: Sequence[PrecisionResult]) -> str | None:
    """Return why nothing is known of sizes above a maximum, which may fit; None if that is known."""
    if any(trial.status == "timeout" for result in results for trial in result.trials):
        return "a trial took too long"
    if any(
        trial.error_kind == "untraceable" and trial.batch_size == result.smallest_failed_batch_size
        for result in results
        for trial in result.trials
    ):
        return "larger sizes cannot be traced"
    return None


def _best(state: SearchState) -> Recommendation | None:
    """Return what is recommended: of several lengths, for the longest."""
    longest = lengths_of(state.settings)[0]
    axis = state.settings.workload.axis
    return recommend(state.results, state.settings.limits.objective, longest, axis)


def _trial_of_the_answer(state: SearchState) -> Trial | None:
    """Return the trial of the recommended batch size, or the last that ran; None if none did."""
    best, longest = _best(state), lengths_of(state.settings)[0]
    if best is None:
        results = [result for result in state.results if result.seq_len == longest]
        trials = [t for result in results for t in result.trials if t.status == "ok"]
    else:
        trials = [
            trial
            for result in state.results
            if (result.precision, result.seq_len, result.remedy)
            == (best.precision, best.seq_len, None)
            for trial in result.trials
            if trial.batch_size == best.batch_size
        ]
    return trials[-1] if trials else None


def _command_that_tries(settings: Settings, recommendation: Recommendation) -> str | None:
    """Return the command line that tries what is recommended; None if it takes files that are gone."""
    launch = settings.launch
    if launch is None:
        return shlex.join(["bsfind", *arguments_of(_check(settings, recommendation))])
    if launch.substitute:
        return None
    return fill(launch, recommendation.precision, recommendation.batch_size, None).as_typed


def _check(settings: Settings, recommendation: Recommendation) -> Settings:
    """Return the settings of a `check` that tries what is recommended."""
    settings = at_length(settings, recommendation.seq_len)
    workload, parts = settings.workload, recommendation.global_batch
    if parts is not None:
        workload = dataclasses.replace(workload, grad_accum=parts.accumulation_steps)
    if not workload.parallel.is_used:  # GPUs that only share the global batch
        workload = dataclasses.replace(workload, parallel=Parallel())
    size, sized = recommendation.batch_size, workload.at(recommendation.batch_size)
    lengths = settings.seq_lens if sized.seq_len is None else (sized.seq_len,)
    return dataclasses.replace(
        settings,
        workload=sized,
        seq_lens=lengths,
        precisions=(recommendation.precision,),
        batch_size=workload.samples(size),
    )


def _launch(launch: Launch | None, logs: Path | None) -> dict[str, Any] | None:
    if launch is None:
        return None
    return {**launch.to_json(), "variables": trackers_off(launch), "logs": logs and str(logs)}


def _why_no_error_bound(
    state: SearchState, device: DeviceInfo, kind: ModelKind | None, version: str
) -> str | None:
    """Return why a prediction has no error bound, after the words "Error bound:"; None if it may have one.

    Args:
        state: the search.
        device: the GPU.
        kind: that of the model, if it was loaded.
        version: release of torch of the prediction.
    """
    codes = {warning.code for warning in state.warnings}
    if state.settings.launch is not None:
        return "none for a launched command, whose prediction is experimental"
    if state.settings.parallel.is_used:
        return "none for a rank of several: NCCL's memory is a guess (`--nccl-memory`)"
    if "uncompiled" in codes:
        return "none for a step that is trained compiled"
    if "value_shapes" in codes:
        return "none for a step whose shapes depend on values"
    if kind and device.traced_by is not None:
        return f"not measured for traces of torch {device.traced_by}"
    return measured().why_not(kind, version) if kind else None


def _prediction(state: SearchState) -> Prediction | None:
    """Return what a predicted report rests on; None if nothing is predicted."""
    device, model = state.device, state.model
    if device is None or device.kind != "simulated":
        return None
    # A build without CUDA (`2.13.0+cpu`) stands for its sibling with CUDA.
    version = (device.torch_version or "").partition("+")[0]
    kind = model.kind if model else None
    workspaces = model.convolution_workspaces if model else state.convolution_workspaces
    asks_cudnn = workspaces is not None and workspaces.endswith(ALL_ASKED)
    no_accuracy_because = _why_no_error_bound(state, device, kind, version)
    accuracy = None
    if kind and no_accuracy_because is None:
        accuracy = measured().accuracy(kind, version, asks_cudnn=asks_cudnn)
    return Prediction(
        torch_version=version,
        allocator=AllocatorSettings.from_environment(os.environ, version).changed(),
        model_kind=kind,
        accuracy=accuracy,
        no_accuracy_because=no_accuracy_because,
        convolution_workspaces=workspaces,
    )


def _environment(device: DeviceInfo | None) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": device.installed_torch if device else None,
        "cuda": device.cuda_version if device and device.traced_by is None else None,
        "variables": {
            name: os.environ[name] for name in _ENVIRONMENT_VARIABLES if name in os.environ
        },
    }

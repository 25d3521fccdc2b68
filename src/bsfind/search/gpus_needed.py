"""How many GPUs it would take: the smallest number on which a model trains with FSDP2."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from bsfind.errors import TargetError, TimeLimitError, UntraceableError, WorkerError
from bsfind.records import DeviceInfo, ModelInfo, ReportWarning
from bsfind.results import GpusNeeded
from bsfind.search.events import Events, Progress
from bsfind.search.opening import Opened
from bsfind.search.time_budget import TimeBudget
from bsfind.search.trials import TrialRunner
from bsfind.search.variants import precisions_of
from bsfind.settings import Settings
from bsfind.trial import Trial
from bsfind.worker.client import ModelDoesNotFit, Worker

MOST_GPUS = 1024
"""The largest number that is tried."""

_LONG_S = 20.0
"""Processor time after which an answer that was not asked for is given up, seconds."""

_LONGEST_TRIAL_S = 30.0
"""Time after which a trial of such an answer is ended, seconds."""

Try = Callable[[Settings], tuple[Trial, ModelInfo | None]]
"""Tries the smallest batch size on one rank of several; a model that does not fit is None."""


class _TakesTooLongError(Exception):
    """The number of GPUs was not asked for, and is not found soon."""


def sharded(settings: Settings, ranks: int) -> Settings:
    """Return the settings of training with FSDP2 on so many GPUs.

    Args:
        settings: of training on one, or with FSDP2 on a number that is to be found.
        ranks: the number.
    """
    parallel = dataclasses.replace(settings.parallel, strategy="fsdp", world_size=ranks)
    device = dataclasses.replace(settings.device, communicators=parallel.communicators)
    workload = dataclasses.replace(settings.workload, parallel=parallel)
    return dataclasses.replace(settings, workload=workload, device=device)


def _precision_of(settings: Settings, asked: list[str], device: DeviceInfo) -> str:
    """Return the precision to answer in: the last that was asked for, else FSDP2's policy.

    Args:
        settings: what was asked for.
        asked: its precisions, `amp` resolved.
        device: the GPU.
    """
    if "precision" in settings.given or not device.supports_bf16:
        return asked[-1]
    return "mp-bf16"


def look_for_more_gpus(
    opened: Opened, worker: Worker | None, clock: TimeBudget, events: Events
) -> GpusNeeded | ReportWarning:
    """Return how many GPUs it takes where nothing fits on one, or why that is not known.

    Its arguments are those of `find_gpus_needed`.
    """
    code, hint = "gpus_needed_unknown", None
    try:
        needed = find_gpus_needed(opened, worker, clock, events, is_asked_for=False)
    except _TakesTooLongError:
        why = "how many GPUs it would take is not known: to trace such a step on a rank takes long"
        hint = "`--parallel fsdp --world-size auto` finds it, however long it takes"
    except (TargetError, UntraceableError, WorkerError) as error:
        why = f"how many GPUs it would take is not known: {error.message}"
    else:
        if needed is not None:
            return needed
        code = "no_number_of_gpus"
        why = (
            f"nor does it train on {MOST_GPUS:,} of these GPUs with FSDP2: "
            "activations and gathered parameters alone do not fit"
        )
        hint = "`--parallel fsdp --precision mp-bf16` or `--grad-checkpoint` needs less"
    return ReportWarning(code=code, message=why, hint=hint)


def find_gpus_needed(
    opened: Opened,
    worker: Worker | None,
    clock: TimeBudget,
    events: Events,
    *,
    is_asked_for: bool,
) -> GpusNeeded | None:
    """Return how many GPUs it takes, each as the one that was opened; None: not even many are enough.

    Args:
        opened: the device.
        worker: one that can open it anew; None: the pool has one.
        clock: how long it may take.
        events: told which number is tried.
        is_asked_for: whether it may take as long as it takes.

    Raises:
        BsfindError: the model's code fails, or cannot be traced.
        _TakesTooLongError: it was not asked for, and its trials take long.
    """
    settings, device = opened.settings, opened.device
    clock = clock if is_asked_for else clock.with_trials_of(_LONGEST_TRIAL_S)
    busy_s = 0.0
    precision = _precision_of(settings, precisions_of(settings, device), device)
    limits = settings.limits
    budgets: dict[int, int] = {}

    def run(shared: Settings) -> tuple[Trial, ModelInfo | None]:
        nonlocal busy_s
        if busy_s > _LONG_S and not is_asked_for:
            raise _TakesTooLongError
        number, size = shared.parallel.world_size, max(1, limits.least)
        events.progress(_progress_on(number, precision))
        opener = worker if worker is not None and worker.is_alive else opened.pool.take()
        found = opener.open(shared.device, clock.for_start())
        budget = budgets[number] = limits.headroom.leaves(found.capacity_bytes)
        runner = TrialRunner(
            *(shared, precision, opened.pool, clock),
            keeps_worker=not opened.policy.is_measured,
            opened=opener,
        )
        try:
            steps = max(limits.steps, limits.confirm_steps)
            if is_asked_for:
                trial = runner.run_within(size, budget, steps=steps, exact=True)
            else:
                trial = runner.run_within(size, budget, steps=limits.steps)
                if trial.status == "ok":  # the further steps repeat what was traced
                    trial = runner.run_within(size, budget, steps=steps)
        except ModelDoesNotFit as answer:
            return Trial(batch_size=size, status="oom", message=str(answer)), None
        except TimeLimitError:
            if is_asked_for:
                raise
            raise _TakesTooLongError from None
        busy_s += runner.busy_s
        if trial.status == "timeout" and not is_asked_for:
            raise _TakesTooLongError
        return trial, runner.model

    return gpus_needed(settings, precision, budgets.__getitem__, run)


def gpus_needed(
    settings: Settings, precision: str, capacity_bytes: Callable[[int], int], run: Try
) -> GpusNeeded | None:
    """Return the smallest number of GPUs on which the smallest batch size trains; None: not even on many.

    Args:
        settings: what to train.
        precision: in which precision.
        capacity_bytes: returns what the allocator of each of so many GPUs may reserve, headroom left free.
        run: tries a number.

    Raises:
        BsfindError: the model's code fails.
    """
    fails, number = 1, MOST_GPUS  # what does not fit on many fits on no other number
    found: GpusNeeded | None = None
    nearby: list[int] = []  # where the answer is likely to be
    while found is None or found.world_size - fails > 1:
        trial, model = run(sharded(settings, number))
        if trial.status == "ok" and model is not None:
            is_first = found is None
            found = _needed(precision, number, trial, model, capacity_bytes(number))
            if is_first:
                likely = _guess(found)
                nearby = [likely, likely - 1, likely + 1]
        elif found is None:
            return None
        else:
            fails = number
        between = range(fails + 1, found.world_size)
        nearby = [each for each in nearby if each in between]
        number = nearby[0] if nearby else (fails + found.world_size) // 2
    return found


def _progress_on(number: int, precision: str) -> Progress:
    """Return what the progress line says while a number of GPUs is tried."""
    return Progress(
        precision=precision,
        doing=f"trying {number} GPUs with FSDP2",
        batch_size=None,
        best=None,
        failed=None,
        trials=0,
        out_of_memory=0,
    )


def _needed(
    precision: str, number: int, trial: Trial, model: ModelInfo, capacity_bytes: int
) -> GpusNeeded:
    gradients = model.gradient_bytes or 0
    resident, peak = trial.resident_bytes or 0, trial.peak_allocated_bytes or 0
    return GpusNeeded(
        world_size=number,
        strategy="fsdp",
        precision=precision,
        batch_size=trial.batch_size,
        parameter_bytes=model.model_bytes,
        gradient_bytes=gradients,
        optimizer_bytes=max(0, resident - model.model_bytes - gradients),
        activation_bytes=max(0, peak - max(resident, model.model_bytes + gradients)),
        peak_reserved_bytes=trial.peak_reserved_bytes or 0,
        capacity_bytes=capacity_bytes,
    )


def _guess(found: GpusNeeded) -> int:
    """Return the number at which the sharded memory of a number that fits fills the card."""
    shards = found.parameter_bytes + found.gradient_bytes + found.optimizer_bytes
    left = found.capacity_bytes - (found.peak_reserved_bytes - shards)
    return math.ceil(shards * found.world_size / left) if left > 0 else found.world_size - 1

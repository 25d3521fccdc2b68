"""What a run of the user's command says about a batch size: a trial, or the error that ends the search."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bsfind.errors import BsfindError, InternalError, TargetError, TimeLimitError, UsageError
from bsfind.failures.gpu_faults import device_fault
from bsfind.failures.leaks import (
    StepMemory,
    is_growing,
    leak_after,
    leak_message,
    steady_retries,
    steps_differ,
)
from bsfind.failures.oom import (
    BATCH_NORM_REFUSAL,
    FailureKind,
    classify,
    first_sentence,
    is_batch_norm_refusal,
    may_depend_on_size,
)
from bsfind.launch.limiting_rank import limiting, memory_of_ranks, peak_reserved
from bsfind.launch.placeholders import several_machines
from bsfind.launch.ranks import Run
from bsfind.launch.records import RankRecord, Step
from bsfind.launch.why_failed import first_line, why_it_failed
from bsfind.simulation.allocator.recording import Recording, numbered_events, streams_of
from bsfind.trial import Leak, Trial
from bsfind.units import format_bytes, format_duration

_LONG = 16
"""Steps of a run from which on growth is looked for."""

_NO_STEP = (
    "what counts is a step of an optimizer of torch.optim; a loop without one calls `bsfind.step()` after "
    "each of its own"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run says.

    Attributes:
        trial: of the batch size.
        refusal: the error to report if no batch size runs, where the command failed at this one.
        record: what the process with the least memory left told; None where none did.
        differ: whether steps needed different amounts of memory.
    """

    trial: Trial
    refusal: BsfindError | None = None
    record: RankRecord | None = None
    differ: bool = False


def outcome_of(
    run: Run, batch_size: int, limit_bytes: int, timeout_s: float, leave_bytes: int = 0
) -> Outcome:
    """Return what a run says about a batch size.

    Args:
        run: how it went.
        batch_size: what stood for the placeholder.
        limit_bytes: what the allocator was allowed to reserve.
        leave_bytes: what each of several ranks has to leave free.
        timeout_s: how long the run was allowed to take, seconds.

    Raises:
        TimeLimitError: it took too long.
        TargetError: the command fails whatever the batch size is.
        UsageError: it trains on several machines.
        GpuFaultError: the GPU failed.
    """
    if run.has_unheard_ranks:
        raise several_machines()
    failed = run.failed
    if failed is not None:
        found = (
            Outcome(trial=_caught(failed, batch_size), record=failed)
            if failed.status == "oom"
            else _failed(failed, run, batch_size)
        )
        rank = failed.rank if failed.world_size > 1 else None
        return replace(found, trial=replace(found.trial, limiting_rank=rank))
    if run.is_whole:
        return _ran(run, batch_size, limit_bytes, leave_bytes)
    if run.is_out_of_time:
        if run.ended_early is not None:
            return _others_wait(run.ended_early, run, batch_size)
        raise _too_late(run, batch_size, timeout_s)
    return _ended(run, batch_size, limit_bytes, leave_bytes)


# ------------------------------------------------------------------------------------ it ran


def _ran(run: Run, batch_size: int, limit_bytes: int, leave_bytes: int) -> Outcome:
    ranks = run.ranks
    record = limiting(ranks, limit_bytes)
    if not peak_reserved(record):
        raise TargetError(
            f"the command does not use CUDA: it has made {record.on_host + len(record.steps)} optimizer "
            f"steps without, batch size {batch_size}",
            hint="bsfind measures the memory of a GPU: does the command need an option for it?",
        )
    short = _short(ranks, batch_size)
    if short is not None:
        return short
    if len(ranks) == 1:
        trial = _trial(record, batch_size, limit_bytes)
    else:
        trial = _trial_of_ranks(ranks, record, batch_size, limit_bytes, leave_bytes)
    return Outcome(
        trial=trial,
        record=record,
        differ=steps_differ([_memory(step, i) for i, step in enumerate(record.steps)])
        and not (len(ranks) > 1 and _settles(record.steps)),
    )


def _trial_of_ranks(
    ranks: Sequence[RankRecord],
    record: RankRecord,
    batch_size: int,
    limit_bytes: int,
    leave_bytes: int,
) -> Trial:
    """Return the trial of several ranks, with the figures of the limiting one.

    What NCCL and the contexts of CUDA take grows with the ranks, and is not the allocator's: the headroom has
    to be free besides.
    """
    if (device := record.device) is not None:
        left = device.free_bytes + device.reserved_bytes - peak_reserved(record)
        if left < leave_bytes:
            return Trial(
                batch_size=batch_size,
                status="oom",
                steps=len(record.steps),
                limiting_rank=record.rank,
                message=f"rank {record.rank} leaves {format_bytes(max(0, left))} of its GPU free, less than "
                f"the headroom of {format_bytes(leave_bytes)}: NCCL and the contexts of CUDA take memory too",
            )
    own_limit = limit_bytes if record.limit_bytes is None else record.limit_bytes
    return replace(
        _trial(record, batch_size, own_limit),
        ranks=memory_of_ranks(ranks),
        limiting_rank=record.rank,
    )


def _memory(step: Step, number: int) -> StepMemory:
    return StepMemory(
        held_bytes=step.held_bytes, peak_bytes=step.peak_allocated_bytes, is_warm_up=number == 0
    )


def _trial(record: RankRecord, batch_size: int, limit_bytes: int) -> Trial:
    """Return the trial of a run that made its steps."""
    steps = record.steps
    reserved = peak_reserved(record)
    if reserved > limit_bytes:
        return Trial(
            batch_size=batch_size,
            status="oom",
            steps=len(steps),
            message=f"{format_bytes(reserved)} were reserved of the {format_bytes(limit_bytes)} that are "
            "to be used: the command sets a limit of its own, or does not call `torch.cuda.set_device`",
        )
    peaks = tuple(step.peak_allocated_bytes for step in steps)
    leak = _leak(steps, limit_bytes - max(peaks))
    retries = [step.retries for step in steps]
    times = [step.time_s for step in steps if step.time_s is not None]
    step_time = statistics.median(times) if times else None
    # Several backward passes, or optimizers: of how many samples, only the command knows.
    is_one_batch = record.optimizers == 1 and all(step.backwards == 1 for step in steps[1:])
    samples = batch_size if is_one_batch else None
    if record.world_size > 1 and samples is not None:
        # Of each rank, where that is what its loader has; otherwise perhaps of all.
        is_of_rank = batch_size in {size for size, _ in record.loaders}
        samples = record.world_size * batch_size if is_of_rank else None
    return Trial(
        batch_size=batch_size,
        status="ok" if leak is None else "error",
        error_kind=None if leak is None else "leak",
        peak_allocated_bytes=max(peaks),
        peak_reserved_bytes=reserved,
        resident_bytes=steps[-1].held_bytes,
        num_alloc_retries=retries[-1],
        steady_alloc_retries=steady_retries(retries),
        peaks_by_step=peaks,
        leak=leak,
        steps=len(steps),
        step_time_s=step_time,
        samples_per_s=samples / step_time if step_time and samples is not None else None,
        message=None if leak is None else leak_message(leak, len(steps)),
    )


def _settles(steps: Sequence[Step]) -> bool:
    """Tell whether no step after the second needs more than the one before it.

    DistributedDataParallel makes its buckets anew in the second, and frees the old ones some steps later.
    """
    peaks = [step.peak_allocated_bytes for step in steps[1:]]
    return peaks == sorted(peaks, reverse=True)


def _leak(steps: Sequence[Step], left_bytes: int) -> Leak | None:
    """Return the leak that the steps show; None if they are too few to tell, or show none."""
    sizes = [step.held_bytes for step in steps]
    if len(sizes) < _LONG:
        return None
    before, after = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
    if not is_growing(before) or min(after[len(after) // 2 :]) <= max(before):
        return None
    return leak_after(before, after, left_bytes)


def recording_of(record: RankRecord, batch_size: int) -> Recording | None:
    """Return what a process asked of the allocator; None where it cannot be replayed."""
    told, device = record.recording, record.device
    if told is None or device is None:
        return None
    names = ("action", "addr", "size", "stream")
    try:
        entries = [dict(zip(names, entry, strict=True)) for entry in told["entries"]]
        events = numbered_events((), entries)
        streams = streams_of(entries)
        has_convolutions = bool(told["has_convolutions"])
    except (KeyError, TypeError, ValueError):
        return None
    return Recording(
        batch_size=batch_size,
        available_bytes=device.free_bytes + device.reserved_bytes,
        has_convolutions=has_convolutions,
        segments=(),
        events=events,
        streams=streams,
    )


def trains_the_same(one: RankRecord, other: RankRecord) -> bool:
    """Tell whether two runs asked the allocator for exactly as much in every step."""
    return len(one.steps) > 1 and [step.requested_bytes for step in one.steps] == [
        step.requested_bytes for step in other.steps
    ]


# ------------------------------------------------------------------------------------ it did not


def _caught(record: RankRecord, batch_size: int) -> Trial:
    who = f"rank {record.rank}" if record.world_size > 1 else "the command"
    return Trial(
        batch_size=batch_size,
        status="oom",
        steps=max(0, len(record.steps) - 1),
        message=f"{who} went on after an out-of-memory error: {first_sentence(record.message)}",
    )


def _failed(record: RankRecord, run: Run, batch_size: int) -> Outcome:
    """Return what the exception that ended a process says.

    Raises:
        BsfindError: the GPU that is simulated there cannot do what the command asks of it.
    """
    if (own := record.own_error) is not None:
        own.detail = run.last_lines if isinstance(own, InternalError) else ""
        raise own
    error = record.error or RuntimeError(record.message)
    kind = classify(error, memory_exhausted=record.is_exhausted)
    steps = len(record.steps)
    if kind is FailureKind.OUT_OF_MEMORY or record.out_of_memory:
        said = record.out_of_memory[0] if record.out_of_memory else str(error)
        of_rank = f"rank {record.rank}: " if record.world_size > 1 else ""
        trial = Trial(
            batch_size=batch_size,
            status="oom",
            steps=steps,
            message=f"{of_rank}{first_sentence(said)}",
        )
        return Outcome(trial=trial, record=record)
    if kind is FailureKind.SIZE_LIMIT and batch_size > 1:
        trial = Trial(
            batch_size=batch_size,
            status="error",
            error_kind="kernel_limit",
            steps=steps,
            message=first_sentence(str(error)),
        )
        return Outcome(trial=trial, record=record)
    if batch_size == 1 and is_batch_norm_refusal(error):
        trial = Trial(
            batch_size=1, status="error", error_kind="batch_norm", message=BATCH_NORM_REFUSAL
        )
        return Outcome(trial=trial, record=record)
    fault = device_fault(error, doing=f"batch size {batch_size}", traceback=run.last_lines)
    if fault is not None:
        raise fault
    told = f"{type(error).__name__}: {first_line(str(error))}"
    return _refused(told, run, batch_size, may_run=may_depend_on_size(error))


def _refused(told: str, run: Run, batch_size: int, *, may_run: bool) -> Outcome:
    """Return the outcome of a size at which the command fails.

    Raises:
        TargetError: it would at every size.
    """
    assumed = [
        each.message for r in run.records for each in r.warnings if each.code == "value_assumed"
    ]
    error = TargetError(
        f"the command failed: {told}, batch size {batch_size}",
        detail="\n".join((run.last_lines, *assumed)),
        hint=f"all that it printed is in `{run.log}`",
    )
    if not may_run:
        raise error
    trial = Trial(
        batch_size=batch_size,
        status="error",
        error_kind="refused",
        message=told.replace("`", ""),
    )
    return Outcome(trial=trial, refusal=error)


def _too_late(run: Run, batch_size: int, timeout_s: float) -> TimeLimitError:
    steps = max((len(record.steps) for record in run.records), default=None)
    what = "" if steps is None else f" ({steps} optimizer steps were made)"
    return TimeLimitError(
        f"the command has not made its steps after {format_duration(timeout_s)}{what}, "
        f"batch size {batch_size}",
        detail=run.last_lines,
        hint=f"what it printed, and the stacks of its threads, is in `{run.log}`; `--trial-timeout` allows "
        f"more time, and {_NO_STEP}",
    )


def _ended(run: Run, batch_size: int, limit_bytes: int, leave_bytes: int) -> Outcome:
    """Return what it says that the command ended by itself before it had made all steps."""
    ranks = run.ranks
    record = limiting(ranks, limit_bytes) if ranks else None
    has_failed = run.status != 0
    if has_failed and classify(RuntimeError(run.last_lines)) is FailureKind.OUT_OF_MEMORY:
        message = _out_of_memory_line(run.last_lines)
        return Outcome(trial=Trial(batch_size=batch_size, status="oom", steps=0, message=message))
    if has_failed:
        told, may_run = why_it_failed(run.status, run.last_lines)
        return _refused(told, run, batch_size, may_run=may_run)
    if record is not None:
        short = _short(ranks, batch_size)
        if short is not None:
            return short
        if all(each.steps for each in ranks):
            # A short training is a whole one.
            return _ran(run, batch_size, limit_bytes, leave_bytes)
    message = f"the command ended without an optimizer step, batch size {batch_size}"
    if record is None:
        raise TargetError(
            f"{message}: no process of it has used CUDA through torch",
            detail=run.last_lines,
            hint=f"it has to train in Python, on a GPU, and not with `python -E` or `-I`; {_NO_STEP}",
        )
    refusal = TargetError(message, detail=run.last_lines, hint=_NO_STEP)
    trial = Trial(batch_size=batch_size, status="error", error_kind="refused", message=message)
    return Outcome(trial=trial, refusal=refusal, record=record)


def _others_wait(record: RankRecord, run: Run, batch_size: int) -> Outcome:
    """Return the outcome of a run in which one rank has ended early, and others have not."""
    short = _short([record], batch_size)
    if short is not None:
        return short
    steps = len(record.steps)
    when = f"after optimizer step {steps}" if steps else "before its first optimizer step"
    told = f"rank {record.rank} ended {when}, and other ranks did not"
    return _refused(told, run, batch_size, may_run=True)


def _short(ranks: Sequence[RankRecord], batch_size: int) -> Outcome | None:
    """Return the outcome of a batch that is larger than the data set of a rank; None if it is not."""
    of_rank = [
        (max(int(samples) for size, samples in each.loaders if size == batch_size), each)
        for each in ranks
        if batch_size in {size for size, _ in each.loaders}
    ]
    samples, record = min(of_rank, key=lambda each: each[0], default=(batch_size, ranks[0]))
    if samples >= batch_size:
        return None
    message = f"the data set has {samples:,} samples, the batch size is {batch_size:,}"
    if not record.steps:
        message += ": no step"
    trial = Trial(
        batch_size=batch_size,
        status="error",
        error_kind="short_batch",
        delivered_batch_size=max(1, samples),
        message=message,
    )
    refusal = TargetError(message, hint="bsfind needs a data set with more samples than a batch")
    return Outcome(trial=trial, refusal=refusal, record=record)


def check_device(record: RankRecord, index: int) -> None:
    """Make sure that a process trains on the GPU that was opened.

    Raises:
        UsageError: it trains on another one.
    """
    device = record.device
    if device is not None and record.world_size == 1 and device.index != index:
        raise UsageError(
            f"the command trains on cuda:{device.index}, bsfind measures cuda:{index}",
            hint=f"leave it only the one GPU: `CUDA_VISIBLE_DEVICES={device.index} bsfind launch …`",
        )


def _out_of_memory_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    told = (line for line in lines if classify(RuntimeError(line)) is FailureKind.OUT_OF_MEMORY)
    return first_sentence(next(told, "out of memory"))

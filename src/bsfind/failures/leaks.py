"""Finds leaks: memory that grows from step to step. Pure; for the steps of any device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bsfind.records import Assumption, ReportWarning
from bsfind.trial import Leak
from bsfind.units import format_bytes

_WARM_UP_STEPS = 2
"""The first step makes the optimizer's state, the second is the first that has it from its start."""

_FEWEST_STEPS_OF_A_VERDICT = 8
"""Enough to see most caches full; in twice four steps growth can go on, or come to an end."""

_HORIZON_STEPS = 100_000
"""Growth that would take longer than this to fill the rest of the device is not called a leak."""

_VERDICTS = 3
"""How often more steps are run if parameters still get their first gradient in them."""

_ALMOST_ALL = 0.9
"""Part of a leak that has to be freed: what a hook computes from it may stay."""

_DIFFERENT = 0.01
"""Peaks that differ by a smaller share are equal: the workspaces of libraries vary."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Memory of one step.

    Attributes:
        held_bytes: what tensors hold after it, without gradients: parameters that a step does not use have
            none.
        peak_bytes: the most that tensors held during it, as requested from the allocator.
        is_warm_up: whether it is unlike those to come, as the first one is. So is one in which some
            parameter has its first gradient, and the optimizer makes its state.
        has_retries: whether the allocator flushed its cache in it. Near the limit convolutions then get
            by with smaller workspaces: its peak says nothing of what the step runs.
    """

    held_bytes: int
    peak_bytes: int
    is_warm_up: bool
    has_retries: bool = False


def _settled(steps: Sequence[StepMemory]) -> Sequence[StepMemory]:
    """Return the steps from the last that warms up, that one included."""
    warm_up = max((i for i, step in enumerate(steps) if step.is_warm_up), default=0)
    return steps[warm_up:]


def steps_differ(steps: Sequence[StepMemory]) -> bool:
    """Tell whether steps of a trial need different amounts of memory, those that warm up aside."""
    peaks = [step.peak_bytes for step in _settled(steps)[1:] if not step.has_retries]
    return len(peaks) >= 2 and max(peaks) - min(peaks) > _DIFFERENT * max(peaks)


def leak_of(
    steps: Sequence[StepMemory], run_more: Callable[[int], Sequence[StepMemory]], left_bytes: int
) -> Leak | None:
    """Return the leak that the steps of a trial show, after more of them where they are not alike.

    Args:
        steps: the steps that ran.
        run_more: runs a number of further steps and returns their memory.
        left_bytes: what the device has left.
    """
    for _ in range(_VERDICTS):
        settled = _settled(steps)
        sizes = held_after(settled)
        grows = is_growing(sizes)
        are_few = len(settled) <= _FEWEST_STEPS_OF_A_VERDICT
        if not grows and not (are_few and steps_differ(settled)):
            return None
        more = run_more(steps_of_a_verdict(len(sizes)))
        if not any(step.is_warm_up for step in more):
            if not grows or leak_after(sizes, held_after(more), left_bytes) is None:
                return None
            # A leak ends the search: a cache of a dozen batches is told from it by as many steps again.
            sizes += held_after(more)
            further = held_after(run_more(len(sizes)))
            grew_always = all(a < b for a, b in itertools.pairwise(sizes[1:]))
            if grew_always and further[-1] <= further[-2]:
                return None
            return leak_after(sizes, further, left_bytes)
        steps = [*steps, *more]
    return None


def is_freed_at_the_end(leak: Leak, held: Sequence[int], held_at_end: int, batches: int) -> bool:
    """Tell whether what a leak left is freed at the end of an epoch, and the device has room until then.

    Args:
        leak: the leak.
        held: bytes that tensors held after each step of an epoch.
        held_at_end: the same after the end of the epoch.
        batches: batches of an epoch.
    """
    grown, freed = held[-1] - held[1], held[-1] - held_at_end
    return leak.lasts_steps > batches and freed >= _ALMOST_ALL * grown > 0


def note_of_epoch(leak: Leak, batches: int) -> tuple[str, str]:
    """Return the code and the message of a note about memory that `is_freed_at_the_end` of an epoch."""
    grows = format_bytes(leak.bytes_per_step)
    return (
        "grows_in_epoch",
        f"memory grows by {grows} with every batch of an epoch, and the module's `on_train_epoch_end` frees "
        f"it: an epoch of {batches:,} batches takes {format_bytes(batches * leak.bytes_per_step)} at its end "
        "that the figures here do not hold",
    )


def held_after(steps: Sequence[StepMemory]) -> list[int]:
    """Return the bytes that tensors hold after each step."""
    return [step.held_bytes for step in steps]


def is_growing(sizes: Sequence[int]) -> bool:
    """Tell whether the memory held after each step has grown, which may be a leak.

    Args:
        sizes: bytes that tensors hold after each step, the first one included.

    Returns:
        Whether even the least of the last third is more than the most of the first third: so are a
        few bytes with every step and many with every tenth, but not what comes and goes. A cache that
        fills up looks the same: more steps tell (`leak_after`).
    """
    settled = sizes[1:]
    third = max(1, len(settled) // 3)
    return len(settled) >= 2 and min(settled[-third:]) > max(settled[:third])


def leak_after(sizes: Sequence[int], more: Sequence[int], left_bytes: int) -> Leak | None:
    """Return the leak that further steps confirm; None if the growth has come to an end.

    Args:
        sizes: bytes that tensors hold after each step, which `is_growing`.
        more: the same for the steps after these; as many again, or a few at least.
        left_bytes: what the device has left.
    """
    middle = more[len(more) // 2 - 1]
    if not sizes[-1] < middle < more[-1]:
        return None
    since = len(sizes) // 3  # from here on: a rate over many steps, for growth that comes in jumps
    growth = max(1, (more[-1] - sizes[since]) // (len(sizes) + len(more) - 1 - since))
    lasts = max(1, left_bytes // growth)
    if lasts > _HORIZON_STEPS:
        return None
    return Leak(bytes_per_step=growth, lasts_steps=lasts + len(sizes) + len(more))


STEPS_DIFFER = ReportWarning(
    code="steps_differ",
    message="steps of a trial need different amounts of memory: the largest step that ran counts, and a "
    "long run may meet a larger one",
    hint="`--steps` runs more of them in each trial",
)


def draws_warning(places: Sequence[str]) -> ReportWarning:
    """Return the warning that random numbers decide how large a step is.

    Args:
        places: in the code that draw them: `model.py:12`.
    """
    return ReportWarning(
        code="random_steps",
        message=f"random numbers that are drawn at {', '.join(places)} decide how much memory a step "
        "needs: all figures are those of the largest step",
        hint="steps with other random numbers need less memory and less time",
    )


def draws_assumption(places: Sequence[str]) -> Assumption:
    """Return the same as an assumption."""
    return Assumption(
        what="random numbers",
        value="those of the largest step",
        why=f"what a step runs depends on what {', '.join(places)} draws, and a long run meets the "
        "largest step sooner or later",
    )


def leak_message(leak: Leak, steps: int) -> str:
    """Return one sentence about a leak that showed in a number of steps."""
    return (
        f"memory still grows after {steps} steps, a leak or a cache that fills: "
        f"{format_bytes(leak.bytes_per_step)} more after every step, out of memory after about "
        f"{leak.lasts_steps:,} steps"
    )


def steps_of_a_verdict(steps: int) -> int:
    """Return how many more steps distinguish a leak from a cache, after a number that grew."""
    return max(_FEWEST_STEPS_OF_A_VERDICT, steps - 1)


def steady_retries(retries: Sequence[int]) -> int:
    """Return how many retries came in the second half of the steps, in a steady state.

    Near the limit, the first steps of most models flush the cache a few times, until its blocks fit the step;
    later steps do not.

    Args:
        retries: how often the allocator had flushed its cache, after each step.
    """
    settled = max(_WARM_UP_STEPS, len(retries) // 2)
    return retries[-1] - retries[settled - 1] if len(retries) > settled else 0

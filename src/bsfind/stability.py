"""Does a step repeat the one before it? Memory that grows from step to step is a leak.

Pure: figures of the steps go in, a verdict comes out, whichever device the steps ran on.
"""

from __future__ import annotations

from collections.abc import Sequence

from bsfind.records import Leak
from bsfind.units import format_bytes

__all__ = ["is_growing", "leak_after", "leak_message", "steady_retries", "steps_of_a_verdict"]

_WARM_UP_STEPS = 2
"""The first step makes the optimizer's state, the second is the first that has it from its start."""

_FEWEST_STEPS_OF_A_VERDICT = 8
"""Enough to see most caches full; in twice four steps growth can go on, or come to an end."""

_HORIZON_STEPS = 100_000
"""Growth that would take longer than this to fill the rest of the device is not called a leak."""


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


def leak_message(leak: Leak) -> str:
    """Return one sentence about a leak."""
    return (
        f"memory leaks: {format_bytes(leak.bytes_per_step)} more after every step, "
        f"out of memory after about {leak.lasts_steps:,} steps"
    )


def steps_of_a_verdict(steps: int) -> int:
    """Return how many more steps tell a leak from a cache, after so many that grew."""
    return max(_FEWEST_STEPS_OF_A_VERDICT, steps - 1)


def steady_retries(retries: Sequence[int]) -> int:
    """Return how many retries came once the allocator had time to settle: in the second half.

    With most models the first steps flush the cache a few times near the limit, until its blocks suit
    the step, and no later one does.

    Args:
        retries: how often the allocator had flushed its cache, after each step.
    """
    settled = max(_WARM_UP_STEPS, len(retries) // 2)
    return retries[-1] - retries[settled - 1] if len(retries) > settled else 0

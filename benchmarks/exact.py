"""The exact largest batch size: a bisection of single fresh processes, without bsfind's search.

Forks for every batch size, before CUDA is initialised: each trial has an allocator of its own, and
torch is imported once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

__all__ = ["largest", "largest_batch_size", "runs_in_fresh_process"]


def runs_in_fresh_process(step: Callable[[int], bool | None], batch_size: int) -> bool:
    """Tell whether `step(batch_size)` runs in a fork of this process.

    False if it runs out of memory, or returns False itself.

    Raises:
        RuntimeError: it failed in another way.
    """
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 1 if step(batch_size) is False else 0
        except BaseException as error:
            code = 1 if "OutOfMemoryError" in type(error).__name__ else 2
            if code == 2 and "unable to find an engine" in str(error):
                code = 1
            if code == 2:
                traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in (0, 1):
        raise RuntimeError(f"batch size {batch_size} ended with status {status}")
    return status == 0


def largest_batch_size(step: Callable[[int], bool | None], near: int) -> int:
    """Return the largest batch size that runs in a fresh process; 0 if none does.

    Args:
        step: a training run of a few steps at a batch size.
        near: where to begin.
    """
    return largest(lambda batch_size: runs_in_fresh_process(step, batch_size), near)


def largest(fits: Callable[[int], bool], near: int, limit: int = 1 << 31) -> int:
    """Return the largest batch size that fits, 0 if none does.

    Gallops from `near`, so that few tries do where it is close, then halves the bracket to the end.

    Args:
        fits: whether a batch size does.
        near: where to begin.
        limit: nothing from here on is tried.
    """
    low, high = 0, max(1, near)
    step = 1
    if fits(high):
        low = high
        while (high := low + step) < limit and fits(high):
            low, step = high, 2 * step
    else:
        while (low := high - step) > 0 and not fits(low):
            high, step = low, 2 * step
        low = max(low, 0)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

"""The exact largest batch size: a bisection of single fresh processes, without bsfind's search.

Imports torch once and forks for every batch size, before CUDA is initialised: each trial has an
allocator of its own. Doubles from a power of two that runs, then halves the bracket to the end.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

__all__ = ["largest_batch_size", "runs_in_fresh_process"]


def runs_in_fresh_process(step: Callable[[int], None], batch_size: int) -> bool:
    """Tell whether `step(batch_size)` runs in a fork of this process; False: out of memory.

    Raises:
        RuntimeError: it failed in another way.
    """
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            step(batch_size)
            code = 0
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


def largest_batch_size(step: Callable[[int], None], near: int) -> int:
    """Return the largest batch size that runs.

    Args:
        step: a training run of a few steps at a batch size.
        near: where to begin doubling: the power of two below it.
    """
    low = 1 << max(0, near.bit_length() - 1)
    while low > 1 and not runs_in_fresh_process(step, low):
        low //= 2
    high = 2 * low
    while runs_in_fresh_process(step, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if runs_in_fresh_process(step, middle):
            low = middle
        else:
            high = middle
    return low

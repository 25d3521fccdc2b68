"""How much memory a call takes for a time, by the counters of PyTorch's allocator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["scratch_bytes"]

Result = TypeVar("Result")


def scratch_bytes(run: Callable[[], Result]) -> tuple[int, Result]:
    """Return the bytes that a call asks for beside its result, at their peak, and the result."""
    torch._C._cuda_resetPeakMemoryStats(0)
    kept = run()
    stats = torch._C._cuda_memoryStats(0)["requested_bytes"]["all"]
    return int(stats["peak"] - stats["current"]), kept

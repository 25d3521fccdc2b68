"""A list of allocation events, run through an allocator.

Events are numbered as in `simulation.recording`: `n >= 0` allocates n bytes, `n < 0` frees block
`-n - 1`; blocks are numbered in the order of their allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)


def replay(
    allocator: CachingAllocator,
    blocks: list[Block | None],
    events: Sequence[int],
    optional: Mapping[int, Sequence[int]],
    position: int = 0,
) -> None:
    """Run events; the blocks that they allocate are appended to `blocks`.

    Args:
        allocator: which holds `blocks`.
        blocks: allocated so far; None for one that was done without.
        events: to run.
        optional: positions of scratch memory that a kernel can do without, with the smaller sizes
            that it tries then.
        position: of the first of `events`, as `optional` counts.

    Raises:
        SimulatedOutOfMemoryError: they do not fit.
    """
    malloc, free = allocator.malloc, allocator.free
    for index, event in enumerate(events, position):
        if event < 0:
            block = blocks[-event - 1]
            if block is not None:
                free(block)
            continue
        try:
            blocks.append(malloc(event))
        except SimulatedOutOfMemoryError:
            if index not in optional:
                raise
            blocks.append(_smaller(malloc, optional[index]))


def _smaller(malloc: Callable[[int], Block], sizes: Sequence[int]) -> Block | None:
    for nbytes in sizes:
        try:
            return malloc(nbytes)
        except SimulatedOutOfMemoryError:
            continue
    return None

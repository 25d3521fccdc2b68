"""The largest batch size that fits, from recordings of trials that ran at others.

The allocations of a training step are of few kinds, nearly all of them: of a fixed size, or
proportional to the batch size (or to its square). The largest trial that ran gives the course of
the step, the others tell the kinds apart, and a replay through the allocator's model tells what
fits. Peaks themselves do not extrapolate so well: near the limit, rounding, splitting and flushed
caches decide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.allocator.recording import Recording, replay, resident_blocks
from bsfind.simulation.allocator.settings import AllocatorSettings

_LARGEST_BATCH_SIZE = 2**31 - 1
_LARGE = 1 << 20
_CUBLAS_WORKSPACES = frozenset((8320 << 10, 32 << 20))
"""`parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp, torch 2.6-2.13."""


def largest_that_fits(
    recordings: Sequence[Recording], limit_bytes: int, settings: AllocatorSettings
) -> int | None:
    """Return the largest batch size whose replay fits into `limit_bytes`.

    Args:
        recordings: of trials that ran.
        limit_bytes: what the allocator may reserve in all.
        settings: how the allocator is configured.

    Returns:
        The batch size; None without recordings, or if the settings are beyond the model.
    """
    if settings.unsupported or not recordings:
        return None
    *others, high = sorted(recordings, key=lambda recording: recording.batch_size)
    workspaces = _convolution_workspaces(high) if high.has_convolutions else frozenset()
    events_at = _extrapolation(high, others, workspaces)
    capacity = min(limit_bytes, high.available_bytes)
    if sum(segment["total_size"] for segment in high.segments) > capacity:
        return 0
    memory = DeviceMemory(capacity)
    start = CachingAllocator.from_segments(memory, settings, high.segments)
    optional = dict.fromkeys(workspaces, ())
    resident = [block["address"] for block in resident_blocks(high.segments)]

    def fits(batch_size: int) -> bool:
        allocator = start.copy(memory.copy())
        blocks: list[Block | None] = [allocator.block_at(address) for address in resident]
        try:
            replay(allocator, blocks, events_at(batch_size), optional)
        except SimulatedOutOfMemoryError:
            return False
        return True

    return _bisect(fits, high.batch_size)


def _extrapolation(
    high: Recording, others: Sequence[Recording], workspaces: frozenset[int]
) -> Callable[[int], list[int]]:
    """Return the function from a batch size to the events of a trial at it."""
    known = [(other.batch_size, frozenset(other.events)) for other in reversed(others)]
    resident = {block["requested_size"] for block in resident_blocks(high.segments)}
    # Gradients and optimizer state are as large as parameters; autocast's copies half of it.
    fixed = _CUBLAS_WORKSPACES | resident | {size // 2 for size in resident}
    # cuDNN's workspaces follow the batch closely, though not to the byte.
    nearly_proportional = {high.events[position] for position in workspaces}
    powers = {}
    slopes = _slopes(high, others[-1]) if others else {}
    for size in {event for event in high.events if event >= 0}:
        power = _power_of_batch(size, high.batch_size, known, fixed)
        if power is not None:
            powers[size] = power
        elif size in nearly_proportional:
            powers[size] = 1
        elif size not in slopes:
            powers[size] = 0

    def events_at(batch_size: int) -> list[int]:
        scales = [Fraction(batch_size, high.batch_size) ** power for power in range(3)]
        sizes = {size: math.ceil(size * scales[power]) for size, power in powers.items()}
        beyond = batch_size - high.batch_size
        sizes |= {s: max(1, s + slope * beyond) for s, slope in slopes.items() if s not in powers}
        return [sizes[event] if event >= 0 else event for event in high.events]

    return events_at


def _slopes(high: Recording, low: Recording) -> dict[int, int]:
    """Return the sizes that grow by whole bytes per sample from `low` to `high`, with the slope.

    Such are a workspace's fixed part and its share per sample in one allocation. The partner of a
    size is the one that occurs as often in the other trial; none where several could be it.
    """
    apart = high.batch_size - low.batch_size
    by_count: dict[int, list[int]] = {}
    for size, count in Counter(low.events).items():
        if size > _LARGE:
            by_count.setdefault(count, []).append(size)
    slopes = {}
    for size, count in Counter(high.events).items():
        if size > _LARGE:
            candidates = [
                (size - other) // apart
                for other in by_count.get(count, ())
                if other < size and (size - other) % apart == 0
            ]
            if len(candidates) == 1:
                slopes[size] = candidates[0]
    return slopes


def _power_of_batch(
    size: int,
    batch_size: int,
    known: Sequence[tuple[int, frozenset[int]]],
    fixed: frozenset[int],
) -> int | None:
    """Tell how an allocation grows: 0 as it is, 1 with the batch size, 2 with its square.

    Args:
        size: of the allocation, bytes.
        batch_size: of its trial.
        known: batch sizes and allocations of other trials, the most similar first.
        fixed: sizes that are known not to grow.

    Returns:
        None for a size that is neither: not divisible by the batch size, nor seen at another one.
    """
    if size in fixed:
        return 0
    for other_batch_size, sizes in known:
        possible = [
            power
            for power in range(3)
            if size % batch_size**power == 0
            and size // batch_size**power * other_batch_size**power in sizes
        ]
        if len(possible) == 1:
            return possible[0]
    return 1 if size % batch_size == 0 else None


def _convolution_workspaces(recording: Recording) -> frozenset[int]:
    """Return the positions of allocations that a convolution can do without.

    cuDNN's workspace is allocated and released around one kernel, so nothing comes between the two.
    Where it does not fit, PyTorch tries engines that need less (`try_plans` in
    aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.6-2.13).
    """
    events = recording.events
    count = len(resident_blocks(recording.segments))
    positions = []
    for position, event in enumerate(events[:-1]):
        if event >= 0:
            if event > _LARGE and events[position + 1] == -count - 1:
                positions.append(position)
            count += 1
    return frozenset(positions)


def _bisect(fits: Callable[[int], bool], near: int) -> int:
    """Return the largest batch size that fits: by doubling from 1, then halving the bracket.

    Fragmentation makes some sizes fail between others that fit. The powers of two as starting
    points make the answer depend on the model alone, not on which trials happened to run.

    Args:
        fits: tells whether a batch size fits.
        near: where the answer may be, which only saves time.

    Returns:
        The batch size; 0 if none fits.
    """
    low = 1 << (near.bit_length() - 1)
    while low and not fits(low):
        low //= 2
    high = max(1, 2 * low)
    while high <= _LARGEST_BATCH_SIZE and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

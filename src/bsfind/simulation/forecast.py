"""The largest batch size that fits, from recordings of trials that ran at others.

The allocations of a training step are of two kinds, nearly all of them: of a fixed size, or
proportional to the batch size. The largest trial that ran gives the course of the step, the others
tell the kinds apart, and a replay through the allocator's model tells what fits. Peaks themselves
do not extrapolate so well: near the limit, rounding, splitting and flushed caches decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsfind.simulation.allocator import Block, CachingAllocator, SimulatedOutOfMemoryError
from bsfind.simulation.allocator_settings import AllocatorSettings
from bsfind.simulation.device_memory import DeviceMemory
from bsfind.simulation.recording import Recording

__all__ = ["largest_that_fits"]

_LARGEST_BATCH_SIZE = 2**31 - 1
_LARGE = 1 << 20


def largest_that_fits(
    recordings: Sequence[Recording], limit_bytes: int, settings: AllocatorSettings
) -> int | None:
    """Return the largest batch size whose replay fits into `limit_bytes`.

    Args:
        recordings: of trials that ran.
        limit_bytes: what the allocator may reserve in all.
        settings: how the allocator is configured.

    Returns:
        The batch size; None if there are fewer than two recordings, or if the settings are beyond
        the model.
    """
    if settings.unsupported or len(recordings) < 2:
        return None
    *others, high = sorted(recordings, key=lambda recording: recording.batch_size)
    events_at = _extrapolation(high, others)
    memory = DeviceMemory(min(limit_bytes, high.available_bytes))
    start = CachingAllocator.from_segments(memory, settings, high.segments)
    resident = [
        block["address"]
        for segment in high.segments
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]

    def fits(batch_size: int) -> bool:
        allocator = start.copy(memory.copy())
        blocks = [allocator.block_at(address) for address in resident]
        return _replay_fits(allocator, blocks, events_at(batch_size))

    return _bisect(fits, high.batch_size)


def _extrapolation(high: Recording, others: Sequence[Recording]) -> Callable[[int], list[int]]:
    """Return the function from a batch size to the events of a trial at it."""
    known = [(other.batch_size, frozenset(other.events)) for other in reversed(others)]
    scales = {
        size: _is_proportional(size, high.batch_size, known)
        for size in set(high.events)
        if size >= 0
    }

    def events_at(batch_size: int) -> list[int]:
        sizes = {
            size: -(-size * batch_size // high.batch_size) if is_proportional else size
            for size, is_proportional in scales.items()
        }
        return [sizes[event] if event >= 0 else event for event in high.events]

    return events_at


def _is_proportional(
    size: int, batch_size: int, known: Sequence[tuple[int, frozenset[int]]]
) -> bool:
    """Tell whether an allocation scales with the batch size or stays as it is.

    Args:
        size: of the allocation, bytes.
        batch_size: of its trial.
        known: batch sizes and allocations of other trials, the most similar first.
    """
    per_sample, rest = divmod(size, batch_size)
    for other_batch_size, sizes in known:
        scaled = rest == 0 and per_sample * other_batch_size in sizes
        fixed = size in sizes
        if scaled != fixed:
            return scaled
    # Workspaces follow the batch in steps of their own: call the large ones proportional.
    return rest == 0 or size > _LARGE


def _replay_fits(allocator: CachingAllocator, blocks: list[Block], events: Sequence[int]) -> bool:
    malloc, free = allocator.malloc, allocator.free
    try:
        for event in events:
            if event >= 0:
                blocks.append(malloc(event))
            else:
                free(blocks[-event - 1])
    except SimulatedOutOfMemoryError:
        return False
    return True


def _bisect(fits: Callable[[int], bool], start: int) -> int:
    """Return the largest batch size that fits, near `start`; 0 if none does."""
    low, high = 0, start
    while high <= _LARGEST_BATCH_SIZE and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

"""The allocations and releases of a trial, in order, and their replay through an allocator.

Events are numbers: `n >= 0` allocates n bytes (as requested, not rounded), `n < 0` frees block
`-n - 1`. Blocks are numbered in the order of their allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The allocations of a measured trial.

    The blocks that were allocated when the trial began come first, in the order of
    `resident_blocks`; those of the events follow.

    Attributes:
        batch_size: batch size of the trial.
        available_bytes: what the allocator could have reserved in all at the end of the trial.
        has_convolutions: whether cuDNN may have chosen workspaces that it does not need.
        segments: the allocator's segments when the trial began, as `torch.cuda.memory_snapshot()`
            lists them.
        events: the allocations and releases of the trial.
        streams: the stream of each allocation of the trial; empty: all are on one.
    """

    batch_size: int
    available_bytes: int
    has_convolutions: bool
    segments: tuple[dict[str, Any], ...]
    events: tuple[int, ...]
    streams: tuple[int, ...] = ()


def resident_blocks(segments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the allocated blocks of a snapshot, in the order in which they are numbered."""
    return [
        block
        for segment in segments
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]


_IGNORED_ACTIONS = frozenset(
    (
        *("segment_alloc", "segment_free", "segment_map", "segment_unmap"),
        *("free_completed", "oom", "snapshot"),
    )
)


def numbered_events(
    segments: Iterable[dict[str, Any]], entries: Iterable[Mapping[str, Any]]
) -> tuple[int, ...]:
    """Return the events of a `Recording`, with blocks numbered instead of addressed.

    Args:
        segments: the allocator's segments before the first entry.
        entries: the history that PyTorch keeps of one device (`device_traces` of a snapshot).

    Raises:
        ValueError: an unknown action, or an unknown block is freed.
    """
    numbers = {block["address"]: number for number, block in enumerate(resident_blocks(segments))}
    count = len(numbers)
    events = []
    for entry in entries:
        action = entry["action"]
        if action == "alloc":
            numbers[entry["addr"]] = count
            count += 1
            events.append(entry["size"])
        elif action == "free_requested":
            if entry["addr"] not in numbers:
                raise ValueError("an unknown block is freed")
            events.append(-numbers.pop(entry["addr"]) - 1)
        elif action not in _IGNORED_ACTIONS:
            raise ValueError(f"unknown action {action}")
    return tuple(events)


def streams_of(entries: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Return the streams of a `Recording`, of the entries of `numbered_events`."""
    streams = tuple(entry["stream"] for entry in entries if entry["action"] == "alloc")
    return streams if len(set(streams)) > 1 else ()


def replay(
    allocator: CachingAllocator,
    blocks: list[Block | None],
    events: Sequence[int],
    optional: Mapping[int, Sequence[int]],
    position: int = 0,
    streams: Sequence[int] = (),
) -> None:
    """Run events; appends the blocks that they allocate to `blocks`.

    Args:
        allocator: the allocator that holds `blocks`.
        blocks: the blocks allocated so far; None for optional memory that did not fit.
        events: the events to run.
        optional: positions of memory that a kernel does not need, with the smaller sizes that it
            tries if it does not fit.
        position: position of the first event.
        streams: the stream of each allocation of the events; empty: all are on one.

    Raises:
        SimulatedOutOfMemoryError: the events do not fit.
    """
    begin = len(blocks)

    def malloc_on_stream(nbytes: int) -> Block:
        return allocator.malloc(nbytes, streams[len(blocks) - begin])

    malloc: Callable[[int], Block] = malloc_on_stream if streams else allocator.malloc
    free = allocator.free
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

"""Recorded allocator traces, and their replay (data/README.md describes the files)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bsfind.simulation.allocator.blocks import Block, Segment
from bsfind.simulation.allocator.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory, DeviceMemoryLike

Trace = dict[str, Any]


def load(path: Path) -> Trace:
    trace: Trace = json.loads(gzip.decompress(path.read_bytes()))
    return trace


def store(path: Path, trace: Trace) -> None:
    text = json.dumps(trace, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def settings_of(trace: Trace) -> AllocatorSettings:
    settings = AllocatorSettings.from_environment(
        {"PYTORCH_CUDA_ALLOC_CONF": trace["settings"]}, trace["torch"]
    )
    assert settings.unsupported == ()
    return settings


def allocator_for(trace: Trace, memory: DeviceMemoryLike | None = None) -> CachingAllocator:
    """Return an allocator as it was before the trace, on `memory` or on as much as was free."""
    return CachingAllocator(
        memory or DeviceMemory(trace["free_bytes"]),
        settings_of(trace),
        limit_bytes=trace["limit_bytes"],
        total_bytes=trace["total_bytes"],
    )


class Addresses:
    """Where recorded memory lies, seen from the simulated one.

    All that cudaMalloc gives is shifted by one distance; address space that is reserved for an
    expandable segment has a distance of its own, which its first block shows.
    """

    def __init__(self) -> None:
        self.shifts: dict[Segment | None, int] = {}

    def differ(self, block: Block, recorded: int) -> bool:
        segment = block.segment
        known = segment if segment.is_expandable else None
        shift = self.shifts.setdefault(known, recorded - block.address)
        return block.address + shift != recorded


class RecordedMemory:
    """Device memory that gives the addresses that cudaMalloc gave.

    Args:
        segments: [address, bytes] of each cudaMalloc, in order.
    """

    def __init__(self, segments: Iterable[tuple[int, int]]) -> None:
        self._segments = iter(segments)

    def malloc(self, nbytes: int) -> int | None:
        address, recorded = next(self._segments, (None, 0))
        if recorded != nbytes:
            raise AssertionError(f"{nbytes} bytes of the device, where PyTorch took {recorded}")
        return address

    def free(self, address: int) -> None:
        pass


Difference = tuple[list[int | None], Block | None]


def replay(
    allocator: CachingAllocator,
    events: Iterable[list[Any]],
    blocks: list[Block | None],
    addresses: Addresses,
) -> list[Difference]:
    """Play the events; return those that were answered differently, and which blocks are left."""
    wrong: list[Difference] = []
    for event in events:
        if len(event) == 3:
            size, stream, recorded = event
            try:
                block = allocator.malloc(size, stream)
            except SimulatedOutOfMemoryError:
                block = None
            blocks.append(block)
            if (block is None) != (recorded is None) or (
                block is not None and addresses.differ(block, recorded)
            ):
                wrong.append((event, block))
        elif event:
            allocator.free(blocks[event[0]])  # type: ignore[arg-type]
        else:
            allocator.empty_cache()
    return wrong


def result_of(allocator: CachingAllocator, trace: Trace) -> dict[str, int]:
    """Return the counters of an allocator that the trace has."""
    return {name: getattr(allocator, name) for name in trace["result"]}

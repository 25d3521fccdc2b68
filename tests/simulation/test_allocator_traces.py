"""The model against what PyTorch's allocator answered, address by address (data/README.md)."""

import gzip
import json
import time
from pathlib import Path

import pytest

from bsfind.simulation.allocator.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory

TRACES = sorted((Path(__file__).parent / "data").glob("*.json.gz"))


def load(path):
    return json.loads(gzip.decompress(path.read_bytes()))


def settings_of(trace):
    settings = AllocatorSettings.from_environment(
        {"PYTORCH_CUDA_ALLOC_CONF": trace["settings"]}, trace["torch"]
    )
    assert settings.unsupported == ()
    return settings


class Addresses:
    """Where recorded memory lies, seen from the simulated one.

    All that cudaMalloc gives is shifted by one distance; address space that is reserved for an
    expandable segment has a distance of its own, which its first block shows.
    """

    def __init__(self):
        self.shifts = {}

    def differ(self, block, recorded):
        segment = block.segment
        known = segment if segment.is_expandable else None
        shift = self.shifts.setdefault(known, recorded - block.address)
        return block.address + shift != recorded


def replay(allocator, events, blocks, addresses):
    """Play the events; return those that were answered differently, and which blocks are left."""
    wrong = []
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
            allocator.free(blocks[event[0]])
        else:
            allocator.empty_cache()
    return wrong


def test_there_are_traces():
    assert len(TRACES) >= 15


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name.partition(".")[0])
def test_replay(path):
    trace = load(path)
    allocator = CachingAllocator(
        DeviceMemory(trace["free_bytes"]),
        settings_of(trace),
        limit_bytes=trace["limit_bytes"],
        total_bytes=trace["total_bytes"],
    )
    assert replay(allocator, trace["events"], [], Addresses()) == []
    result = {name: getattr(allocator, name) for name in trace["result"]}
    assert result == trace["result"]


SNAPSHOTS = [path for path in TRACES if "snapshot" in path.name]


@pytest.mark.parametrize("path", SNAPSHOTS, ids=lambda path: path.name.partition(".")[0])
def test_replay_from_a_snapshot(path):
    trace = load(path)
    snapshot = trace["snapshot"]
    earlier, later = trace["events"][: snapshot["after"]], trace["events"][snapshot["after"] :]
    allocator = CachingAllocator.from_segments(
        DeviceMemory(trace["free_bytes"]),
        settings_of(trace),
        snapshot["segments"],
        limit_bytes=trace["limit_bytes"],
        total_bytes=trace["total_bytes"],
    )
    at_start = [(block.address, block.size) for block in allocator.blocks()]
    assert at_start == [piece for segment in snapshot["segments"] for piece in pieces_of(segment)]
    recorded = [event[2] for event in earlier if len(event) == 3]
    freed = {event[0] for event in earlier if len(event) == 1}
    blocks = [
        None if number in freed or address is None else allocator.block_at(address)
        for number, address in enumerate(recorded)
    ]
    for attempt in (allocator.copy(), allocator):
        mine = [block and attempt.block_at(block.address) for block in blocks]
        addresses = Addresses()
        for segment in [None, *{block.segment for block in attempt.blocks()}]:
            addresses.shifts[segment] = 0
        assert replay(attempt, later, mine, addresses) == []
        assert attempt.reserved_bytes == trace["result"]["reserved_bytes"]
        assert attempt.allocated_bytes == trace["result"]["allocated_bytes"]


def pieces_of(segment):
    address = segment["address"]
    for block in segment["blocks"]:
        yield address, block["size"]
        address += block["size"]


def test_a_replay_is_fast():
    trace = load(next(path for path in TRACES if "vit" in path.name))
    events = [(event[0], len(event) == 3) for event in trace["events"]]
    settings = settings_of(trace)
    best = float("inf")
    for _ in range(5):
        allocator = CachingAllocator(DeviceMemory(trace["free_bytes"]), settings)
        blocks = []
        started = time.process_time()
        for number, is_malloc in events:
            if is_malloc:
                blocks.append(allocator.malloc(number))
            else:
                allocator.free(blocks[number])
        best = min(best, time.process_time() - started)
    # 10 ms where this was written; a machine under load is given ten times that.
    assert best < 0.1

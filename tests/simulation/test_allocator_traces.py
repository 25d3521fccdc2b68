"""The model against what PyTorch's allocator answered, address by address (data/README.md)."""

import time
from pathlib import Path

import pytest
from tests.simulation.allocator_traces import (
    Addresses,
    RecordedMemory,
    allocator_for,
    load,
    replay,
    result_of,
    settings_of,
)

from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory

ROOT = Path(__file__).resolve().parents[2]
TRACES = sorted((Path(__file__).parent / "data").glob("*.json.gz"))
# What `make real-gpu` has recorded, on a card or on the fake GPU.
OF_CARDS = sorted((ROOT / "benchmarks" / "results").glob("real_gpu_*_trace_*.json.gz"))


def names(path):
    return path.name.partition(".")[0]


def test_there_are_traces():
    assert len(TRACES) >= 15


@pytest.mark.parametrize("path", [*TRACES, *OF_CARDS], ids=names)
def test_replay(path):
    trace = load(path)
    segments = trace.get("segments")
    allocator = allocator_for(trace, RecordedMemory(segments) if segments else None)
    assert replay(allocator, trace["events"], [], Addresses()) == []
    assert result_of(allocator, trace) == trace["result"]


SNAPSHOTS = [path for path in TRACES if "snapshot" in path.name]


@pytest.mark.parametrize("path", SNAPSHOTS, ids=names)
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

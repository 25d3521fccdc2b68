"""Estimates from recordings: right for steps that are regular, harmless for those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.errors import TimeLimitError
from bsfind.search.estimate import largest_that_fits
from bsfind.search.time_budget import TimeBudget
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.allocator.recording import (
    Recording,
    numbered_events,
    replay,
    streams_of,
)

MIB = 1 << 20
SETTINGS = AllocatorSettings(torch_version="2.13")


@dataclass(frozen=True)
class Step:
    """A training step: allocations of `fixed + per_sample * n (+ per_pair * n * n)` bytes.

    All of them live to the end of the step, but workspaces, which live for one kernel.
    """

    sizes: tuple[tuple[int, int, int], ...]
    workspace_per_sample: int = 0
    parameters: int = 4 * MIB

    def sizes_at(self, n: int) -> list[int]:
        return [fixed + linear * n + square * n * n for fixed, linear, square in self.sizes]

    def events(self, n: int, held: int) -> list[int]:
        """Two steps, in the terms of `Recording`; `held` blocks are there before them."""
        events: list[int] = []
        count = held
        for _ in range(2):
            mine = []
            for size in self.sizes_at(n):
                if self.workspace_per_sample:
                    events += [self.workspace_per_sample * n + 3, -count - 1]
                    count += 1
                events.append(size)
                mine.append(count)
                count += 1
            events += [-block - 1 for block in reversed(mine)]
        return events

    def segments(self) -> tuple[dict[str, object], ...]:
        allocator = CachingAllocator(DeviceMemory(1 << 40), SETTINGS)
        block = allocator.malloc(self.parameters)
        rest = allocator.reserved_bytes - block.size
        used = _block(block.address, block.size, self.parameters, "active_allocated")
        free = _block(block.address + block.size, rest, 0, "inactive")
        return (
            {
                "address": block.address,
                "total_size": allocator.reserved_bytes,
                "stream": 0,
                "segment_type": "large",
                "blocks": [used, free] if rest else [used],
            },
        )

    def recording(self, n: int, capacity: int) -> Recording:
        return Recording(
            batch_size=n,
            available_bytes=capacity,
            has_convolutions=self.workspace_per_sample > 0,
            segments=self.segments(),
            events=tuple(self.events(n, 1)),
        )

    def fits(self, n: int, capacity: int) -> bool:
        allocator = CachingAllocator.from_segments(
            DeviceMemory(capacity), SETTINGS, self.segments()
        )
        return runs(allocator, [next(iter(allocator.allocated_blocks()))], self.events(n, 1))


def _block(address: int, size: int, requested_size: int, state: str) -> dict[str, object]:
    return {"address": address, "size": size, "requested_size": requested_size, "state": state}


def runs(allocator: CachingAllocator, blocks: list[object], events: Sequence[int]) -> bool:
    for event in events:
        try:
            if event >= 0:
                blocks.append(allocator.malloc(event))
            else:
                allocator.free(blocks[-event - 1])  # type: ignore[arg-type]
        except SimulatedOutOfMemoryError:
            return False
    return True


sizes = st.tuples(
    st.sampled_from([0, 8 * MIB + 12, 30 * MIB + 4]),
    st.sampled_from([0, 3 * MIB, 700_000, 12_345]),
    st.sampled_from([0, 0, 0, 2048]),
).filter(lambda size: sum(bool(part) for part in size) == 1)


@given(st.lists(sizes, min_size=1, max_size=6), st.sampled_from([257, 1000, 4000]))
def test_what_it_says_fits_and_the_next_does_not(
    parts: list[tuple[int, int, int]], capacity_mib: int
) -> None:
    step, capacity = Step(tuple(parts)), capacity_mib * MIB
    recordings = [step.recording(n, capacity) for n in (5, 13) if step.fits(n, capacity)]
    if len(recordings) < 2 or not any(linear or square for _, linear, square in parts):
        return
    found = largest_that_fits(recordings, capacity, SETTINGS)
    assert found is not None
    assert step.fits(found, capacity)
    assert not step.fits(found + 1, capacity)


def test_one_recording_is_enough_for_a_plain_step() -> None:
    step, capacity = Step(((0, 3 * MIB, 0), (8 * MIB + 4, 0, 0))), 1000 * MIB
    found = largest_that_fits([step.recording(5, capacity)], capacity, SETTINGS)
    assert found is not None
    assert step.fits(found, capacity)
    assert not step.fits(found + 1, capacity)


def test_a_budget_below_what_ran() -> None:
    step, capacity = Step(((0, 3 * MIB, 0),)), 1000 * MIB
    recordings = [step.recording(n, capacity) for n in (5, 251)]
    found = largest_that_fits(recordings, 200 * MIB, SETTINGS)
    assert found is not None
    assert step.fits(found, 200 * MIB)
    assert not step.fits(found + 1, 200 * MIB)


def test_replays_end_with_the_time_budget() -> None:
    step, capacity = Step(((0, 3 * MIB, 0),)), 1000 * MIB
    spent = TimeBudget(1.0, 0.0)
    with pytest.raises(TimeLimitError):
        largest_that_fits([step.recording(5, capacity)], capacity, SETTINGS, spent.check)


def test_nothing_fits_the_budget() -> None:
    step = Step(((0, 3 * MIB, 0),), parameters=20 * MIB)
    assert largest_that_fits([step.recording(5, 1000 * MIB)], 21 * MIB, SETTINGS) == 0


def test_convolutions_do_without_their_workspace() -> None:
    capacity = 1000 * MIB
    sizes = ((0, 3 * MIB, 0), (512, 0, 0))
    plain = Step(sizes)
    convolving = Step(sizes, workspace_per_sample=2 * MIB)
    expected = largest_that_fits(
        [plain.recording(n, capacity) for n in (5, 13)], capacity, SETTINGS
    )
    found = largest_that_fits(
        [convolving.recording(n, capacity) for n in (5, 13)], capacity, SETTINGS
    )
    assert expected is not None
    assert found == pytest.approx(expected, rel=0.05)


def test_settings_beyond_the_model_give_no_estimate() -> None:
    beyond = AllocatorSettings.from_environment(
        {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, torch_version="2.13"
    )
    recording = Step(((0, 3 * MIB, 0),)).recording(5, 1000 * MIB)
    assert largest_that_fits([recording], 1000 * MIB, beyond) is None
    assert largest_that_fits([], 1000 * MIB, SETTINGS) is None


@given(
    low=st.lists(st.integers(0, 64 * MIB), max_size=30),
    high=st.lists(st.integers(0, 64 * MIB), max_size=30),
    releases=st.lists(st.integers(0, 29), max_size=30, unique=True),
    convolves=st.booleans(),
)
def test_recordings_that_have_nothing_in_common(
    low: list[int], high: list[int], releases: list[int], convolves: bool
) -> None:
    capacity = 500 * MIB

    def recording(n: int, sizes: list[int]) -> Recording:
        events = [*sizes, *(-release - 2 for release in releases if release < len(sizes))]
        return Recording(
            batch_size=n,
            available_bytes=capacity,
            has_convolutions=convolves,
            segments=Step(()).segments(),
            events=tuple(events),
        )

    found = largest_that_fits([recording(5, low), recording(11, high)], capacity, SETTINGS)
    assert found is not None
    assert found >= 0


@pytest.mark.parametrize(("streams", "reserved"), [([0, 0], 20 * MIB), ([0, 7], 40 * MIB)])
def test_what_one_stream_leaves_is_not_anothers(streams: list[int], reserved: int) -> None:
    entries = [
        {"action": "alloc", "addr": address, "size": 6 * MIB, "stream": stream}
        for address, stream in enumerate(streams)
    ]
    recording = Recording(
        batch_size=5,
        available_bytes=30 * MIB,
        has_convolutions=False,
        segments=(),
        events=numbered_events((), entries),
        streams=streams_of(entries),
    )
    allocator = CachingAllocator(DeviceMemory(1 << 40), SETTINGS)
    replay(allocator, [], recording.events, {}, streams=recording.streams)
    assert allocator.reserved_bytes == reserved
    found = largest_that_fits([recording], recording.available_bytes, SETTINGS)
    assert found is not None
    assert (found >= 5) == (reserved <= recording.available_bytes)

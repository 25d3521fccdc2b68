"""The model of the caching allocator, rule by rule, and whatever the requests are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.simulation.allocator.caching_allocator import (
    AllocatorSettings,
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.units import GIB, KIB, MIB


def make_allocator(capacity=1 * GIB, *, limit_bytes=None, total_bytes=None, **settings):
    return CachingAllocator(
        DeviceMemory(capacity),
        AllocatorSettings(**settings),
        limit_bytes=limit_bytes,
        total_bytes=total_bytes,
    )


class TestRounding:
    @pytest.mark.parametrize(
        ("requested", "size"), [(1, 512), (512, 512), (513, 1024), (1 * MIB - 1, 1 * MIB)]
    )
    def test_block_sizes_are_multiples_of_512_bytes(self, requested, size):
        assert make_allocator().malloc(requested).size == size

    @pytest.mark.parametrize(
        ("requested", "size"),
        [(1200, 1536), (2049, 2560), (2048, 2048), (3 * KIB + 1, 3584), (5 * MIB + 1, 6 * MIB)],
    )
    def test_powers_of_two_are_divided(self, requested, size):
        settings = AllocatorSettings(roundup_power2_divisions=(4,) * 16)
        assert settings.round_size(requested) == size

    def test_divisions_depend_on_the_size(self):
        settings = AllocatorSettings(roundup_power2_divisions=(1, 2, *(0,) * 14))
        assert settings.round_size(1 * MIB + 1) == 1 * MIB + 512
        assert settings.round_size(2 * MIB + 1) == 3 * MIB
        assert settings.round_size(4 * MIB + 1) == 4 * MIB + 512

    def test_no_bytes_need_no_memory(self):
        allocator = make_allocator()
        block = allocator.malloc(0)
        assert (block.address, block.size, allocator.reserved_bytes) == (0, 0, 0)
        allocator.free(block)

    def test_a_negative_size_is_an_error(self):
        with pytest.raises(ValueError, match="-1 bytes"):
            make_allocator().malloc(-1)


class TestSegments:
    @pytest.mark.parametrize(
        ("requested", "reserved"),
        [
            (1, 2 * MIB),
            (1 * MIB, 2 * MIB),
            (1 * MIB + 1, 20 * MIB),
            (10 * MIB - 512, 20 * MIB),
            (10 * MIB, 10 * MIB),
            (10 * MIB + 1, 12 * MIB),
            (21 * MIB, 22 * MIB),
        ],
    )
    def test_size_of_a_new_segment(self, requested, reserved):
        allocator = make_allocator()
        allocator.malloc(requested)
        assert allocator.reserved_bytes == allocator.peak_reserved_bytes == reserved

    def test_large_segment_size_is_an_option(self):
        allocator = make_allocator(large_segment_size_mb=40)
        allocator.malloc(2 * MIB)
        assert allocator.reserved_bytes == 40 * MIB

    def test_small_requests_do_not_use_large_blocks(self):
        allocator = make_allocator()
        allocator.free(allocator.malloc(2 * MIB))
        allocator.malloc(1 * MIB)
        assert allocator.reserved_bytes == 22 * MIB

    def test_streams_do_not_share_blocks(self):
        allocator = make_allocator()
        allocator.free(allocator.malloc(2 * MIB, stream=1))
        allocator.malloc(2 * MIB, stream=2)
        assert allocator.reserved_bytes == 40 * MIB
        allocator.malloc(2 * MIB, stream=1)
        assert allocator.reserved_bytes == 40 * MIB


class TestSplitting:
    def test_the_front_of_a_small_block_is_handed_out(self):
        allocator = make_allocator()
        first, second = allocator.malloc(1000), allocator.malloc(512)
        assert second.address == first.address + 1024
        assert allocator.allocated_bytes == 1536

    def test_up_to_one_mib_of_a_large_block_is_not_split_off(self):
        allocator = make_allocator()
        allocator.free(allocator.malloc(12 * MIB))
        assert allocator.malloc(11 * MIB).size == allocator.allocated_bytes == 12 * MIB

    def test_more_than_one_mib_is_split_off(self):
        allocator = make_allocator()
        allocator.free(allocator.malloc(12 * MIB))
        assert allocator.malloc(11 * MIB - 512).size == 11 * MIB - 512

    def test_blocks_over_max_split_size_are_not_split(self):
        allocator = make_allocator(max_split_size_mb=32)
        allocator.free(allocator.malloc(48 * MIB))
        assert allocator.malloc(40 * MIB).size == 48 * MIB

    def test_small_requests_leave_oversize_blocks_alone(self):
        allocator = make_allocator(max_split_size_mb=32)
        allocator.free(allocator.malloc(48 * MIB))
        allocator.malloc(30 * MIB)
        assert allocator.reserved_bytes == 78 * MIB

    @pytest.mark.parametrize(("rounding", "reserved"), [(None, 140 * MIB), (100, 100 * MIB)])
    def test_oversize_requests_leave_much_larger_blocks_alone(self, rounding, reserved):
        allocator = make_allocator(max_split_size_mb=32, max_non_split_rounding_mb=rounding)
        allocator.free(allocator.malloc(100 * MIB))
        allocator.malloc(40 * MIB)
        assert allocator.reserved_bytes == reserved


class TestBestFit:
    def test_the_smallest_block_that_fits(self):
        allocator = make_allocator()
        blocks = [allocator.malloc(size * MIB) for size in (30, 14, 20)]
        addresses = [block.address for block in blocks]
        for block in blocks:
            allocator.free(block)
        assert allocator.malloc(14 * MIB).address == addresses[1]
        assert allocator.malloc(15 * MIB).address == addresses[2]

    @pytest.mark.parametrize(
        ("torch_version", "expected"), [("2.6", "low"), ("2.11.0+cu130", "low"), ("2.13", "old")]
    )
    def test_tie_between_segments(self, torch_version, expected):
        allocator = make_allocator(torch_version=torch_version)
        gap, old = allocator.malloc(12 * MIB), allocator.malloc(12 * MIB)
        low_address, old_address = gap.address, old.address
        allocator.free(gap)
        allocator.empty_cache()
        low = allocator.malloc(12 * MIB)
        assert low.address == low_address
        allocator.free(low)
        allocator.free(old)
        address = allocator.malloc(12 * MIB).address
        assert address == {"low": low_address, "old": old_address}[expected]

    @pytest.mark.parametrize(
        ("torch_version", "taken"), [("2.11", 1), ("2.12.0", 3), ("2.13.0", 1)]
    )
    def test_tie_within_a_segment(self, torch_version, taken):
        allocator = make_allocator(torch_version=torch_version)
        blocks = [allocator.malloc(512 * KIB) for _ in range(4)]
        addresses = [block.address for block in blocks]
        # Splitting makes a new block of the front: to torch 2.12 the last piece is the oldest.
        allocator.free(blocks[1])
        allocator.free(blocks[3])
        assert allocator.malloc(512 * KIB).address == addresses[taken]


class TestMerging:
    def test_free_neighbours_become_one_block(self):
        allocator = make_allocator()
        blocks = [allocator.malloc(512 * KIB) for _ in range(4)]
        start = blocks[0].address
        for index in (0, 2, 1):
            allocator.free(blocks[index])
        assert [(block.address, block.size) for block in allocator.blocks()] == [
            (start, 1536 * KIB),
            (start + 1536 * KIB, 512 * KIB),
        ]

    def test_freeing_twice_is_an_error(self):
        allocator = make_allocator()
        block = allocator.malloc(1)
        allocator.free(block)
        with pytest.raises(ValueError, match="not in use"):
            allocator.free(block)


class TestRunningOut:
    def test_cached_memory_is_given_back_and_the_request_tried_again(self):
        allocator = make_allocator(64 * MIB)
        allocator.free(allocator.malloc(40 * MIB))
        allocator.malloc(50 * MIB)
        assert allocator.reserved_bytes == 50 * MIB
        assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 0)

    def test_segments_in_use_are_kept(self):
        allocator = make_allocator(64 * MIB)
        kept, freed = allocator.malloc(20 * MIB), allocator.malloc(20 * MIB)
        allocator.free(freed)
        allocator.free(kept)
        small = allocator.malloc(2 * MIB)  # in the first segment
        with pytest.raises(SimulatedOutOfMemoryError) as caught:
            allocator.malloc(60 * MIB)
        assert (allocator.num_alloc_retries, allocator.num_ooms) == (1, 1)
        assert caught.value.requested_bytes == 60 * MIB
        assert caught.value.allocated_bytes == small.size == 2 * MIB
        assert caught.value.reserved_bytes == allocator.reserved_bytes == 20 * MIB

    def test_a_limit_counts_before_the_device_does(self):
        allocator = make_allocator(limit_bytes=30 * MIB)
        allocator.malloc(20 * MIB)
        with pytest.raises(SimulatedOutOfMemoryError):
            allocator.malloc(12 * MIB)
        allocator.malloc(10 * MIB)
        assert allocator.reserved_bytes == allocator.limit_bytes == 30 * MIB

    def test_oversize_blocks_are_given_back_before_all_others(self):
        allocator = make_allocator(200 * MIB, max_split_size_mb=32)
        blocks = [allocator.malloc(size * MIB) for size in (20, 60, 90)]
        for block in blocks:
            allocator.free(block)
        allocator.malloc(45 * MIB)  # takes 60
        allocator.malloc(65 * MIB)  # 90 is too much, but goes, where 20 would not help
        assert allocator.num_alloc_retries == 0
        assert allocator.reserved_bytes == (20 + 60 + 66) * MIB

    def test_garbage_collection_gives_back_what_was_free_for_long(self):
        allocator = make_allocator(limit_bytes=100 * MIB, garbage_collection_threshold=0.7)
        old, recent = allocator.malloc(20 * MIB), allocator.malloc(24 * MIB)
        allocator.free(old)
        for _ in range(3):
            allocator.free(allocator.malloc(30 * MIB))
        allocator.free(recent)
        allocator.malloc(32 * MIB)
        sizes = sorted(block.size for block in allocator.blocks())
        assert sizes == [24 * MIB, 30 * MIB, 32 * MIB]

    def test_garbage_is_not_collected_without_a_limit(self):
        allocator = make_allocator(garbage_collection_threshold=0.1)
        allocator.free(allocator.malloc(20 * MIB))
        allocator.malloc(500 * MIB)
        assert allocator.reserved_bytes == 520 * MIB


class TestExpandableSegments:
    def test_a_segment_grows_page_by_page(self):
        allocator = make_allocator(expandable_segments=True)
        first, second = allocator.malloc(15 * MIB), allocator.malloc(15 * MIB)
        assert second.address == first.address + 15 * MIB
        assert allocator.reserved_bytes == 40 * MIB
        allocator.malloc(1)
        assert allocator.reserved_bytes == 42 * MIB

    def test_large_blocks_are_split_to_the_byte(self):
        allocator = make_allocator(expandable_segments=True)
        assert allocator.malloc(20 * MIB - 512).size == 20 * MIB - 512
        assert allocator.malloc(1 * MIB + 512).size == 1 * MIB + 512

    def test_free_pages_are_unmapped(self):
        allocator = make_allocator(expandable_segments=True)
        blocks = [allocator.malloc(10 * MIB) for _ in range(10)]
        for block in blocks[1:9]:
            allocator.free(block)
        allocator.empty_cache()
        # Halves of the first and of the last page are in use.
        assert allocator.reserved_bytes == 40 * MIB
        assert allocator.allocated_bytes == 20 * MIB

    def test_unmapped_pages_are_filled_from_the_lowest_on(self):
        allocator = make_allocator(expandable_segments=True)
        blocks = [allocator.malloc(20 * MIB) for _ in range(4)]
        addresses = [block.address for block in blocks]
        allocator.free(blocks[2])
        allocator.free(blocks[1])
        allocator.empty_cache()
        assert allocator.reserved_bytes == 40 * MIB
        assert allocator.malloc(30 * MIB).address == addresses[1]
        assert allocator.reserved_bytes == 80 * MIB

    def test_running_out_of_memory_leaves_what_was_there(self):
        allocator = make_allocator(100 * MIB, expandable_segments=True)
        block = allocator.malloc(70 * MIB)
        with pytest.raises(SimulatedOutOfMemoryError):
            allocator.malloc(40 * MIB)
        assert allocator.reserved_bytes == 80 * MIB
        allocator.free(block)
        assert allocator.malloc(100 * MIB).size == 100 * MIB

    def test_a_second_segment_starts_where_addresses_run_out(self):
        allocator = make_allocator(160 * MIB, total_bytes=160 * MIB, expandable_segments=True)
        blocks = [allocator.malloc(20 * MIB) for _ in range(8)]
        for block in blocks[::2]:
            allocator.free(block)
        # 180 MiB of addresses: 20 MiB at the end, and four gaps of 20 MiB.
        far = allocator.malloc(60 * MIB)
        assert abs(far.address - blocks[1].address) > 1 * GIB


class TestState:
    SEGMENTS = (
        {
            "address": 0x7F12_0000_0000,
            "total_size": 20 * MIB,
            "stream": 0,
            "segment_type": "large",
            "is_expandable": False,
            "blocks": [
                {"size": 4 * MIB, "requested_size": 4 * MIB, "state": "active_allocated"},
                {"size": 3 * MIB, "requested_size": 3 * MIB, "state": "active_awaiting_free"},
                {"size": 3 * MIB, "requested_size": 0, "state": "inactive"},
                {"size": 10 * MIB, "requested_size": 9 * MIB, "state": "active_allocated"},
            ],
        },
        {
            "address": 0x7F12_0200_0000,
            "total_size": 2 * MIB,
            "stream": 0,
            "segment_type": "small",
            "is_expandable": False,
            "blocks": [{"size": 2 * MIB, "requested_size": 0, "state": "inactive"}],
        },
    )

    def start(self, **options):
        return CachingAllocator.from_segments(
            DeviceMemory(64 * MIB), AllocatorSettings(), self.SEGMENTS, **options
        )

    def test_counters_of_a_snapshot(self):
        allocator = self.start()
        assert allocator.reserved_bytes == allocator.peak_reserved_bytes == 22 * MIB
        assert allocator.allocated_bytes == allocator.peak_allocated_bytes == 14 * MIB

    def test_free_memory_of_a_snapshot_is_used(self):
        allocator = self.start()
        assert allocator.malloc(6 * MIB).address == 0x7F12_0000_0000 + 4 * MIB
        assert allocator.malloc(512).address == 0x7F12_0200_0000
        assert allocator.reserved_bytes == 22 * MIB

    @pytest.mark.parametrize(("expandable", "reserved"), [(True, 60 * MIB), (False, 80 * MIB)])
    def test_expandable_segments_of_a_snapshot(self, expandable, reserved):
        free = [{"size": 20 * MIB, "requested_size": 0, "state": "inactive"}]
        in_use = [{"size": 20 * MIB, "requested_size": 20 * MIB, "state": "active_allocated"}]
        segments = [
            {
                "address": 0x3_0000_0000 + pages * 20 * MIB,
                "total_size": 20 * MIB,
                "stream": 0,
                "segment_type": "large",
                "is_expandable": True,
                "blocks": blocks,
            }
            for pages, blocks in ((0, in_use), (1, free), (3, in_use))
        ]
        segments[0:2] = [segments[0] | {"total_size": 40 * MIB, "blocks": in_use + free}]
        allocator = CachingAllocator.from_segments(
            DeviceMemory(100 * MIB), AllocatorSettings(expandable_segments=expandable), segments
        )
        assert allocator.reserved_bytes == 60 * MIB
        address = allocator.malloc(20 * MIB).address
        assert (address == 0x3_0000_0000 + 20 * MIB) == expandable
        assert allocator.reserved_bytes == reserved
        assert (allocator.malloc(20 * MIB).address == 0x3_0000_0000 + 40 * MIB) == expandable
        for block in list(allocator.allocated_blocks()):
            allocator.free(block)
        allocator.empty_cache()
        assert allocator.reserved_bytes == 0

    def test_blocks_of_a_snapshot_are_found_by_address(self):
        allocator = self.start()
        first, last = allocator.allocated_blocks()
        assert allocator.block_at(0x7F12_0000_0000) is first
        assert allocator.block_at(0x7F12_0000_0000 + 10 * MIB) is last
        for address in (0, 0x7F12_0000_0000 + 4 * MIB, 0x7F12_0200_0000):
            with pytest.raises(KeyError, match="no block in use"):
                allocator.block_at(address)

    def test_blocks_are_found_after_changes(self):
        allocator = self.start()
        block = allocator.malloc(6 * MIB)
        assert allocator.block_at(block.address) is block
        allocator.free(block)
        with pytest.raises(KeyError):
            allocator.block_at(block.address)
        again = allocator.malloc(5 * MIB)
        assert again.address == block.address
        assert allocator.block_at(block.address) is again

    def test_segments_of_cuda_graphs_serve_nobody_else(self):
        segments = [segment | {"segment_pool_id": (0, 1)} for segment in self.SEGMENTS]
        allocator = CachingAllocator.from_segments(
            DeviceMemory(64 * MIB), AllocatorSettings(), segments
        )
        allocator.empty_cache()
        assert allocator.reserved_bytes == 22 * MIB
        allocator.copy().malloc(512)
        allocator.malloc(512)
        assert allocator.reserved_bytes == 24 * MIB

    def test_a_snapshot_must_fit(self):
        with pytest.raises(ValueError, match="do not fit"):
            CachingAllocator.from_segments(
                DeviceMemory(20 * MIB), AllocatorSettings(), self.SEGMENTS
            )

    def test_a_copy_changes_on_its_own(self):
        allocator = self.start(limit_bytes=40 * MIB)
        twin = allocator.copy()
        for block in list(twin.allocated_blocks()):
            twin.free(block)
        twin.empty_cache()
        assert (twin.reserved_bytes, twin.allocated_bytes, twin.limit_bytes) == (0, 0, 40 * MIB)
        assert allocator.reserved_bytes == 22 * MIB
        assert len(list(allocator.allocated_blocks())) == 2

    def test_only_known_device_memory_is_copied(self):
        class OtherMemory:
            def malloc(self, nbytes):
                return None

            def free(self, address):
                pass

        allocator = CachingAllocator(OtherMemory())
        with pytest.raises(TypeError, match="device_memory"):
            allocator.copy()
        assert allocator.copy(OtherMemory()).settings == AllocatorSettings()


REQUESTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("malloc"),
            st.one_of(st.integers(1, 4096), st.integers(1, 40 * MIB), st.sampled_from([2 * MIB])),
            st.integers(0, 1),
        ),
        st.tuples(st.just("free"), st.integers(0, 1000), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
    ),
    max_size=60,
)
SETTINGS = st.builds(
    AllocatorSettings,
    torch_version=st.sampled_from(["2.11", "2.12", "2.13"]),
    expandable_segments=st.booleans(),
    max_split_size_mb=st.sampled_from([None, 24]),
    garbage_collection_threshold=st.sampled_from([0.0, 0.5]),
    roundup_power2_divisions=st.sampled_from([(0,) * 16, (4,) * 16]),
)
LIMITS = st.sampled_from([None, 80 * MIB])


def play(allocator, requests):
    """Make the requests; return the blocks in use, and the sizes that were answered."""
    live, answers = [], []
    for kind, number, stream in requests:
        if kind == "malloc":
            try:
                live.append(allocator.malloc(number, stream))
                answers.append((live[-1].address, live[-1].size))
                assert live[-1].size >= number
            except SimulatedOutOfMemoryError:
                answers.append(None)
        elif kind == "free" and live:
            allocator.free(live.pop(number % len(live)))
        elif kind == "empty":
            allocator.empty_cache()
    return live, answers


@given(SETTINGS, REQUESTS, LIMITS)
def test_counters_are_those_of_the_blocks(settings, requests, limit_bytes):
    memory = DeviceMemory(100 * MIB)
    allocator = CachingAllocator(memory, settings, limit_bytes=limit_bytes)
    live, _ = play(allocator, requests)
    assert allocator.allocated_bytes == sum(block.size for block in live)
    assert sorted(block.address for block in live) == [
        block.address for block in allocator.allocated_blocks()
    ]
    assert allocator.reserved_bytes == sum(block.size for block in allocator.blocks())
    assert allocator.reserved_bytes == memory.used_bytes <= (limit_bytes or 100 * MIB)
    assert allocator.allocated_bytes <= allocator.peak_allocated_bytes
    assert allocator.reserved_bytes <= allocator.peak_reserved_bytes


@given(SETTINGS, REQUESTS)
def test_blocks_tile_memory_and_free_neighbours_are_merged(settings, requests):
    allocator = CachingAllocator(DeviceMemory(100 * MIB), settings)
    live, _ = play(allocator, requests)
    in_use = {id(block) for block in live}
    previous = None
    for block in allocator.blocks():
        assert block.size > 0
        assert block.size % 512 == 0
        if previous is not None:
            assert block.address >= previous.address + previous.size
            if block.prev is previous:
                assert block.address == previous.address + previous.size
                assert id(block) in in_use or id(previous) in in_use
        previous = block


@given(SETTINGS, REQUESTS, LIMITS)
def test_nothing_is_reserved_when_all_is_freed(settings, requests, limit_bytes):
    memory = DeviceMemory(100 * MIB)
    allocator = CachingAllocator(memory, settings, limit_bytes=limit_bytes)
    live, _ = play(allocator, requests)
    for block in live:
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == memory.used_bytes == 0
    assert list(allocator.blocks()) == []
    allocator.reset_peaks()
    assert allocator.peak_allocated_bytes == allocator.peak_reserved_bytes == 0


@given(SETTINGS, REQUESTS, REQUESTS, LIMITS)
def test_a_copy_answers_as_the_original_does(settings, before, after, limit_bytes):
    allocator = CachingAllocator(DeviceMemory(100 * MIB), settings, limit_bytes=limit_bytes)
    play(allocator, before)
    twin = allocator.copy()
    assert play(twin, after)[1] == play(allocator, after)[1]
    assert twin.reserved_bytes == allocator.reserved_bytes
    assert twin.num_alloc_retries == allocator.num_alloc_retries

"""Simulated cudaMalloc."""

import pytest

from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.units import MIB


def test_memory_comes_in_pages_of_2_mib():
    memory = DeviceMemory(10 * MIB)
    first, second = memory.malloc(1), memory.malloc(3 * MIB)
    assert second == first + 2 * MIB
    assert (memory.used_bytes, memory.free_bytes) == (6 * MIB, 4 * MIB)


def test_the_lowest_gap_that_is_large_enough():
    memory = DeviceMemory(100 * MIB)
    addresses = [memory.malloc(size * MIB) for size in (2, 2, 6, 2, 2)]
    memory.free(addresses[0])
    memory.free(addresses[2])
    assert memory.malloc(4 * MIB) == addresses[2]
    assert memory.malloc(2 * MIB) == addresses[0]
    assert memory.malloc(2 * MIB) == addresses[2] + 4 * MIB


def test_neighbouring_gaps_are_one():
    memory = DeviceMemory(6 * MIB)
    addresses = [memory.malloc(2 * MIB) for _ in range(3)]
    memory.free(addresses[1])
    memory.free(addresses[0])
    assert memory.malloc(4 * MIB) == addresses[0]


def test_gaps_do_not_make_it_full():
    memory = DeviceMemory(6 * MIB)
    addresses = [memory.malloc(2 * MIB) for _ in range(3)]
    memory.free(addresses[0])
    memory.free(addresses[2])
    assert memory.malloc(4 * MIB) == addresses[2]
    assert memory.malloc(1) is None


def test_only_what_was_taken_is_freed():
    memory = DeviceMemory(6 * MIB)
    address = memory.malloc(2 * MIB)
    memory.free(address)
    with pytest.raises(ValueError, match="no device memory"):
        memory.free(address)


def test_claimed_ranges_are_where_they_were():
    memory = DeviceMemory(100 * MIB)
    start = 0x7F12_3400_0000
    memory.claim(start, 4 * MIB)
    memory.claim(start + 8 * MIB, 2 * MIB)
    assert memory.malloc(6 * MIB) == start + 10 * MIB
    assert memory.malloc(4 * MIB) == start + 4 * MIB
    for taken in (start, start + 2 * MIB, start - 2 * MIB):
        with pytest.raises(ValueError, match="taken already"):
            memory.claim(taken, 4 * MIB)
    with pytest.raises(ValueError, match="do not fit"):
        memory.claim(start + 200 * MIB, 90 * MIB)


def test_a_copy_changes_on_its_own():
    memory = DeviceMemory(10 * MIB)
    address = memory.malloc(2 * MIB)
    twin = memory.copy()
    twin.free(address)
    assert twin.malloc(10 * MIB) == address
    assert memory.malloc(10 * MIB) is None
    assert memory.used_bytes == 2 * MIB

"""What the caching allocator takes memory from: cudaMalloc and cudaFree, without CUDA."""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

# cudaMalloc hands out whole pages of 2 MiB for what the caching allocator asks for.
_PAGE = 2 << 20
_FIRST_ADDRESS = 0x7F00_0000_0000


class DeviceMemoryLike(Protocol):
    """What a caching allocator needs of a device."""

    def malloc(self, nbytes: int) -> int | None:
        """Return the address of `nbytes` of new memory; None where the device is full."""
        ...

    def free(self, address: int) -> None:
        """Give back what `malloc` answered with `address`."""
        ...


class ClaimableMemory(DeviceMemoryLike, Protocol):
    """Device memory in which an allocator can start with memory that it holds already."""

    def claim(self, address: int, nbytes: int) -> None:
        """Take exactly the range `address` … `address + nbytes`.

        Raises:
            ValueError: the range is taken, or larger than what is free.
        """
        ...


class DeviceMemory:
    """Memory of one GPU: first fit by address, in pages of 2 MiB.

    Virtual addresses do not run out on a GPU, so memory is full when its bytes are used up, never
    because of gaps.

    Args:
        capacity_bytes: what one process can take: of the whole card, what the CUDA context and
            other processes leave.
    """

    __slots__ = ("_base", "_ends", "_sizes", "_starts", "capacity_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._base = _FIRST_ADDRESS
        # The ranges in use, in the order of their addresses, neighbours not joined.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._sizes: dict[int, int] = {}

    @property
    def free_bytes(self) -> int:
        """What `malloc` can still give, bytes."""
        return self.capacity_bytes - self.used_bytes

    def malloc(self, nbytes: int) -> int | None:
        """Return the lowest address with room for `nbytes`; None where the device is full."""
        size = -(-nbytes // _PAGE) * _PAGE
        if size > self.free_bytes:
            return None
        address = self._base
        for index, start in enumerate(self._starts):
            if start - address >= size:
                self._insert(index, address, size)
                return address
            address = self._ends[index]
        self._insert(len(self._starts), address, size)
        return address

    def free(self, address: int) -> None:
        """Give back what `malloc` or `claim` placed at `address`.

        Raises:
            ValueError: nothing starts there.
        """
        size = self._sizes.pop(address, None)
        if size is None:
            raise ValueError(f"no device memory was taken at {address:#x}")
        index = bisect_left(self._starts, address)
        del self._starts[index], self._ends[index]
        self.used_bytes -= size

    def claim(self, address: int, nbytes: int) -> None:
        """Take exactly the range `address` … `address + nbytes`.

        Memory from `malloc` then lies above the lowest address that was claimed.

        Raises:
            ValueError: the range is taken, or larger than what is free.
        """
        size = -(-nbytes // _PAGE) * _PAGE
        index = bisect_left(self._starts, address)
        before = index > 0 and self._ends[index - 1] > address
        after = index < len(self._starts) and self._starts[index] < address + size
        if before or after:
            raise ValueError(f"device memory at {address:#x} is taken already")
        if size > self.free_bytes:
            raise ValueError(f"{nbytes} bytes do not fit in {self.free_bytes} bytes that are free")
        self._base = min(self._base, address) if self._starts else address
        self._insert(index, address, size)

    def copy(self) -> DeviceMemory:
        """Return device memory in the same state, which changes on its own."""
        twin = DeviceMemory(self.capacity_bytes)
        twin.used_bytes = self.used_bytes
        twin._base = self._base
        twin._starts = self._starts.copy()
        twin._ends = self._ends.copy()
        twin._sizes = self._sizes.copy()
        return twin

    def _insert(self, index: int, address: int, size: int) -> None:
        self._starts.insert(index, address)
        self._ends.insert(index, address + size)
        self._sizes[address] = size
        self.used_bytes += size

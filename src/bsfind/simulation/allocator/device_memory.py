"""Device memory, from which the caching allocator takes its segments: cudaMalloc and cudaFree."""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

# cudaMalloc hands out whole pages of 2 MiB for what the caching allocator asks for.
_PAGE = 2 << 20
_FIRST_ADDRESS = 0x7F00_0000_0000


class DeviceMemoryLike(Protocol):
    """The device memory that a caching allocator needs."""

    def malloc(self, nbytes: int) -> int | None:
        """Return the address of `nbytes` of new memory, or None if the device is full."""
        ...

    def free(self, address: int) -> None:
        """Free the memory that `malloc` returned `address` for."""
        ...


class ClaimableMemory(DeviceMemoryLike, Protocol):
    """Device memory for an allocator that starts with segments of a snapshot."""

    def claim(self, address: int, nbytes: int) -> None:
        """Take exactly the range `address` … `address + nbytes`.

        Raises:
            ValueError: the range is in use, or larger than what is free.
        """
        ...


class DeviceMemory:
    """Memory of one GPU: first fit by address, in pages of 2 MiB.

    A GPU has more virtual addresses than memory, so gaps between ranges do not make it full.

    Args:
        capacity_bytes: what the process can allocate: the memory of the card without the CUDA
            context and other processes.
    """

    __slots__ = ("_base", "_ends", "_sizes", "_starts", "capacity_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._base = _FIRST_ADDRESS
        # The ranges in use, in the order of their addresses, adjacent ranges not joined.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._sizes: dict[int, int] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes that `malloc` can still return."""
        return self.capacity_bytes - self.used_bytes

    def malloc(self, nbytes: int) -> int | None:
        """Return the lowest address with room for `nbytes`, or None if the device is full."""
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
        """Free what `malloc` or `claim` placed at `address`.

        Raises:
            ValueError: no allocation starts there.
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
            ValueError: the range is in use, or larger than what is free.
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
        """Return an independent copy."""
        copy = DeviceMemory(self.capacity_bytes)
        copy.used_bytes = self.used_bytes
        copy._base = self._base
        copy._starts = self._starts.copy()
        copy._ends = self._ends.copy()
        copy._sizes = self._sizes.copy()
        return copy

    def _insert(self, index: int, address: int, size: int) -> None:
        self._starts.insert(index, address)
        self._ends.insert(index, address + size)
        self._sizes[address] = size
        self.used_bytes += size

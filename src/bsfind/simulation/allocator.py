"""PyTorch's CUDA caching allocator, without CUDA.

Models `DeviceCachingAllocator` of c10/cuda/CUDACachingAllocator.cpp, torch 2.6 to 2.13: address for
address what PyTorch answers, given what cudaMalloc answers. Not modelled: CUDA graphs and other
private pools, `record_stream`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bsfind.simulation import expandable_segments
from bsfind.simulation.allocator_settings import AllocatorSettings
from bsfind.simulation.blocks import (
    ALLOCATED,
    FREE,
    UNMAPPED,
    Block,
    BlockPool,
    Segment,
    TieBreaker,
)
from bsfind.simulation.device_memory import ClaimableMemory, DeviceMemory, DeviceMemoryLike
from bsfind.simulation.expandable_segments import ExpandableSegment
from bsfind.units import MIB, format_bytes

__all__ = [
    "AllocatorSettings",
    "Block",
    "CachingAllocator",
    "DeviceMemory",
    "SimulatedOutOfMemoryError",
]

# c10/core/AllocatorConfig.h
_MIN_BLOCK = 512
_LARGEST_SMALL = 1 * MIB
_SMALL_SEGMENT = 2 * MIB
_SMALLEST_HUGE = 10 * MIB
_HUGE_ROUNDING = 2 * MIB

_FIRST_EXPANDABLE = 1 << 45
_NEVER = 1 << 62


class SimulatedOutOfMemoryError(Exception):
    """The simulated device has no room for a request: `torch.cuda.OutOfMemoryError`.

    Attributes:
        requested_bytes: what the program asked for.
        allocated_bytes: what it had at that moment.
        reserved_bytes: what the allocator held, after it gave back all that it could.
    """

    def __init__(self, requested_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"out of memory: tried to allocate {format_bytes(requested_bytes)} with "
            f"{format_bytes(allocated_bytes)} allocated and {format_bytes(reserved_bytes)} reserved"
        )
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class CachingAllocator:
    """Hands out blocks of device memory and keeps what is freed for later.

    Args:
        device_memory: cudaMalloc and cudaFree.
        settings: the options of the allocator.
        limit_bytes: what it may reserve (`torch.cuda.set_per_process_memory_fraction`, times the
            memory of the device); None: what the device has.

    Attributes:
        allocated_bytes: the sizes of the blocks in use (`memory_allocated`).
        reserved_bytes: what it holds of the device (`memory_reserved`).
        peak_allocated_bytes: the largest `allocated_bytes` since `reset_peaks`.
        peak_reserved_bytes: the largest `reserved_bytes` since `reset_peaks`.
        num_alloc_retries: how often it gave back its cache to serve a request.
        num_ooms: how often that was not enough.
    """

    def __init__(
        self,
        device_memory: DeviceMemoryLike,
        settings: AllocatorSettings | None = None,
        *,
        limit_bytes: int | None = None,
    ) -> None:
        self.device_memory = device_memory
        self.settings = settings = settings or AllocatorSettings()
        self.limit_bytes = limit_bytes
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_alloc_retries = 0
        self.num_ooms = 0

        self._small_pools: dict[int, BlockPool] = {}
        self._large_pools: dict[int, BlockPool] = {}
        # Start address → segment, in the order in which they were made.
        self._segments: dict[int, Segment] = {}
        self._ties = TieBreaker(settings.tie_rule)
        self._numbers_blocks = settings.tie_rule == "block"
        self._num_large_searches = 0

        # The settings, as what the hot path asks.
        self._rounds_up = any(settings.roundup_power2_divisions)
        self._expandable = settings.expandable_segments
        self._max_split = settings.max_split_bytes
        self._collects = settings.garbage_collection_threshold > 0
        self._takes_first_fit = not (
            self._expandable or self._collects or settings.max_split_size_mb is not None
        )
        self._large_remainder = _MIN_BLOCK if self._expandable else _LARGEST_SMALL + 1

    @classmethod
    def from_segments(
        cls,
        device_memory: ClaimableMemory,
        settings: AllocatorSettings,
        segments: Iterable[Mapping[str, Any]],
        *,
        limit_bytes: int | None = None,
    ) -> CachingAllocator:
        """Return an allocator in the state of a snapshot.

        Its peaks are what is allocated and reserved now. Which segment is older is not in a
        snapshot: they count as made in the order of their addresses, which is that of cudaMalloc as
        long as nothing was given back. Blocks that wait for another
        stream count as free.

        Args:
            device_memory: where the segments are claimed; must have room for them.
            settings: the options of the allocator.
            segments: those of one device, as `torch.cuda.memory_snapshot()` lists them.
            limit_bytes: see the class.

        Raises:
            ValueError: the segments overlap, or do not fit.
        """
        allocator = cls(device_memory, settings, limit_bytes=limit_bytes)
        for info in sorted(segments, key=lambda info: int(info["address"])):
            allocator._adopt(device_memory, info)
        allocator.reset_peaks()
        return allocator

    def copy(self, device_memory: DeviceMemoryLike | None = None) -> CachingAllocator:
        """Return an allocator in the same state, which changes on its own.

        Args:
            device_memory: a copy of this allocator's device memory; None: `DeviceMemory` is copied.

        Raises:
            TypeError: no device memory was given, and this allocator's is of another kind.
        """
        if device_memory is None:
            if not isinstance(self.device_memory, DeviceMemory):
                raise TypeError("`device_memory` is needed: only `DeviceMemory` copies itself")
            device_memory = self.device_memory.copy()
        twin = CachingAllocator(device_memory, self.settings, limit_bytes=self.limit_bytes)
        for name in (
            "allocated_bytes",
            "reserved_bytes",
            "peak_allocated_bytes",
            "peak_reserved_bytes",
            "num_alloc_retries",
            "num_ooms",
            "_num_large_searches",
            "_takes_first_fit",
        ):
            setattr(twin, name, getattr(self, name))
        twin._ties.last = self._ties.last
        pools: dict[int, BlockPool] = {}
        for mine, its in (
            (self._small_pools, twin._small_pools),
            (self._large_pools, twin._large_pools),
        ):
            for stream, pool in mine.items():
                its[stream] = pools[id(pool)] = BlockPool(pool.is_small, stream, twin._ties)
        for address, segment in self._segments.items():
            pool = segment.pool
            pool = pools.get(id(pool)) or BlockPool(pool.is_small, pool.stream, twin._ties)
            twin._segments[address] = copied = segment.copy_to(pool)
            for block in copied.blocks():
                if block.state == FREE:
                    pool.free.append((block.size, block.order, block.address, block))
                elif block.state == UNMAPPED:
                    pool.unmapped.append((block.address, block))
        for pool in pools.values():
            pool.free.sort()
            pool.unmapped.sort()
        return twin

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        """Return a block of at least `nbytes` bytes for work on `stream`.

        The block object may serve again after it is freed; a request for no bytes is answered with
        a block at address 0, as in PyTorch.

        Raises:
            SimulatedOutOfMemoryError: the device is full, also after all cached memory that can be
                given back was.
        """
        if self._rounds_up and nbytes > 0:
            size = self.settings.round_size(nbytes)
        else:
            size = (nbytes + 511) & -512
        if size <= _LARGEST_SMALL:
            pool = self._small_pools.get(stream)
            min_remainder = _MIN_BLOCK
        else:
            pool = self._large_pools.get(stream)
            min_remainder = self._large_remainder
        if pool is None or size <= 0:
            if size <= 0:
                return self._empty_block(nbytes)
            pool = self._pool(size <= _LARGEST_SMALL, stream)

        block: Block | None
        free = pool.free
        if self._takes_first_fit:
            index = bisect_left(free, (size,))
            block = free.pop(index)[3] if index < len(free) else None
        else:
            block = self._search(pool, size)
            if size >= self._max_split and not self._expandable and not pool.is_small:
                min_remainder = _NEVER
        if block is None:
            block = self._new_block(pool, size, nbytes)

        remainder = block.size - size
        if remainder >= min_remainder:
            address = block.address + size
            following = block.next
            order = block.order
            rest = Block(address, remainder, block.segment, FREE, order, block, following)
            if following is not None:
                following.prev = rest
            block.next = rest
            block.size = size
            insort(free, (remainder, order, address, rest))
            if self._numbers_blocks:
                block.order = self._ties.order_of_part(order)
            if self._collects:
                rest.freed_at = self._num_large_searches
        block.state = ALLOCATED
        self.allocated_bytes = allocated = self.allocated_bytes + block.size
        if allocated > self.peak_allocated_bytes:
            self.peak_allocated_bytes = allocated
        return block

    def free(self, block: Block) -> None:
        """Take a block back, and keep it for later requests.

        Raises:
            ValueError: the block is not in use.
        """
        if block.state != ALLOCATED:
            raise ValueError(f"{block!r} is not in use")
        size = block.size
        if not size:
            return
        self.allocated_bytes -= size
        order = block.order
        free = block.segment.pool.free
        block.state = FREE
        following = block.next
        previous = block.prev
        if previous is not None and previous.state == FREE:
            del free[bisect_left(free, (previous.size, previous.order, previous.address))]
            previous.size = size = previous.size + size
            previous.order = order
            previous.next = following
            if following is not None:
                following.prev = previous
            block = previous
        if following is not None and following.state == FREE:
            del free[bisect_left(free, (following.size, following.order, following.address))]
            block.size = size = size + following.size
            block.next = following = following.next
            if following is not None:
                following.prev = block
        insort(free, (size, order, block.address, block))
        if self._collects:
            block.freed_at = self._num_large_searches

    def empty_cache(self) -> None:
        """Give all cached memory back that is not part of a segment in use.

        Models `release_cached_blocks` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        for pools in (self._large_pools, self._small_pools):
            for stream in sorted(pools):
                to_unmap = []
                for *_, block in pools[stream].free.copy():
                    if block.segment.is_expandable:
                        to_unmap.append(block)
                    elif block.prev is None and block.next is None:
                        self._release(block)
                for block in to_unmap:
                    self._unmap(block)

    def reset_peaks(self) -> None:
        """Let the peaks start again from what is allocated and reserved now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks that have memory, in use or free, in the order of their addresses."""
        for _, segment in sorted(self._segments.items()):
            for block in segment.blocks():
                if block.state != UNMAPPED:
                    yield block

    def allocated_blocks(self) -> Iterator[Block]:
        """Yield the blocks in use, in the order of their addresses."""
        return (block for block in self.blocks() if block.state == ALLOCATED)

    def block_at(self, address: int) -> Block:
        """Return the block in use that starts at `address`.

        Raises:
            KeyError: there is none.
        """
        # The address space of an expandable segment may have others inside: nearest start first.
        for start in sorted((start for start in self._segments if start <= address), reverse=True):
            for block in self._segments[start].blocks():
                if block.address == address and block.state == ALLOCATED:
                    return block
        raise KeyError(f"no block in use at {address:#x}")

    # What a request does that no free block serves.

    def _new_block(self, pool: BlockPool, size: int, nbytes: int) -> Block:
        """Take more of the device, if need be after giving back what is cached."""
        if self._collects and self.limit_bytes is not None:
            self._collect_garbage(self.limit_bytes)
        block = self._allocate(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._allocate(pool, size)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._allocate(pool, size)
        if block is None:
            self.num_ooms += 1
            raise SimulatedOutOfMemoryError(nbytes, self.allocated_bytes, self.reserved_bytes)
        return block

    def _allocate(self, pool: BlockPool, size: int) -> Block | None:
        """Return a new block of at least `size` bytes, in no pool; None where there is no room.

        Models `get_allocation_size` and `alloc_block` of c10/cuda/CUDACachingAllocator.cpp,
        torch 2.13.
        """
        if size <= _LARGEST_SMALL:
            segment_size = _SMALL_SEGMENT
        elif size < _SMALLEST_HUGE:
            segment_size = self.settings.large_segment_bytes
        else:
            segment_size = -(-size // _HUGE_ROUNDING) * _HUGE_ROUNDING
        if self.limit_bytes is not None and self.reserved_bytes + segment_size > self.limit_bytes:
            return None
        block: Block | None
        if self._expandable:
            start = expandable_segments.find(pool, size) or self._new_expandable(pool)
            block, mapped_bytes = expandable_segments.allocate(start, size, self.device_memory)
            self._reserve(mapped_bytes)
            return block
        address = self.device_memory.malloc(segment_size)
        if address is None:
            return None
        self._reserve(segment_size)
        segment = Segment(pool, address, segment_size)
        self._segments[address] = segment
        return segment.head

    def _search(self, pool: BlockPool, size: int) -> Block | None:
        """Take the best block out of the pool, where the settings have rules of their own.

        Models `get_free_block` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        if self._collects and self.limit_bytes is not None and not pool.is_small:
            self._num_large_searches += 1
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if free[index][3].segment.is_expandable:
            if self._expandable:
                # What a block can grow to counts as its size.
                while (
                    free[index][3].segment.is_expandable
                    and index + 1 < len(free)
                    and _room(free[index + 1][3]) < _room(free[index][3])
                ):
                    index += 1
            else:
                while index < len(free) and free[index][3].segment.is_expandable:
                    index += 1
                if index == len(free):
                    return None
        block = free[index][3]
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and (
            block.size >= size + self.settings.max_non_split_rounding_bytes
        ):
            return None
        del free[index]
        return block

    def _release_oversize(self, pool: BlockPool, size: int) -> bool:
        """Give back blocks that are too large to split, until there may be room for `size`.

        Models `release_available_cached_blocks` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        if self.settings.max_split_size_mb is None:
            return False
        needed = max(size, self._max_split)
        index = bisect_left(pool.free, (needed,))
        if index < len(pool.free) and not pool.free[index][3].segment.is_expandable:
            self._release(pool.free[index][3])
            return True
        released = 0
        for *_, block in reversed(pool.free[:index]):
            if released >= needed or block.size < self._max_split:
                break
            if not block.segment.is_expandable:
                released += block.size
                self._release(block)
        return released >= needed

    def _collect_garbage(self, limit_bytes: int) -> None:
        """Give back large segments that were free for longer than others.

        Models `garbage_collect_cached_blocks` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        threshold = int(self.settings.garbage_collection_threshold * limit_bytes)
        target = self.reserved_bytes - threshold
        if target <= 0:
            return
        unsplit = [
            block
            for stream in sorted(self._large_pools)
            for *_, block in self._large_pools[stream].free
            if not block.is_split and not block.segment.is_expandable
        ]
        now = self._num_large_searches
        reclaimed = 0
        while unsplit and reclaimed < target:
            mean_age = sum(now - block.freed_at for block in unsplit) / len(unsplit)
            old = [block for block in unsplit if now - block.freed_at >= mean_age]
            unsplit = [block for block in unsplit if now - block.freed_at < mean_age]
            for block in old:
                reclaimed += block.size
                self._release(block)

    def _release(self, block: Block) -> None:
        """Give back a segment that is one free block."""
        block.segment.pool.remove(block)
        del self._segments[block.address]
        self.device_memory.free(block.address)
        self.reserved_bytes -= block.size

    def _unmap(self, block: Block) -> None:
        """Give back the pages of a free block of an expandable segment."""
        segment = block.segment
        self.reserved_bytes -= expandable_segments.unmap(block, self.device_memory)
        head = segment.head
        if head.state == UNMAPPED and head.next is None:
            segment.pool.remove_unmapped(head)
            del self._segments[head.address]

    # Book-keeping.

    def _reserve(self, nbytes: int) -> None:
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _pool(self, is_small: bool, stream: int) -> BlockPool:
        pools = self._small_pools if is_small else self._large_pools
        if stream not in pools:
            pools[stream] = BlockPool(is_small, stream, self._ties)
        return pools[stream]

    def _new_expandable(self, pool: BlockPool, address: int | None = None) -> Block:
        """Reserve address space for a pool; return it as one unmapped block."""
        if address is None:
            address = _FIRST_EXPANDABLE
            while address in self._segments:
                address += expandable_segments.ADDRESS_SPACE
        page_bytes = _SMALL_SEGMENT if pool.is_small else self.settings.large_segment_bytes
        segment = ExpandableSegment(pool, address, page_bytes)
        self._segments[address] = segment
        pool.insert_unmapped(segment.head)
        return segment.head

    def _empty_block(self, nbytes: int) -> Block:
        if nbytes < 0:
            raise ValueError(f"cannot allocate {nbytes} bytes")
        head = Segment(BlockPool(True, 0, TieBreaker("address")), 0, 0).head
        head.state = ALLOCATED
        return head

    def _adopt(self, device_memory: ClaimableMemory, info: Mapping[str, Any]) -> None:
        """Add a segment of a snapshot."""
        address, size = int(info["address"]), int(info["total_size"])
        is_small = info["segment_type"] == "small"
        if tuple(info.get("segment_pool_id", (0, 0))) == (0, 0):
            pool = self._pool(is_small, int(info["stream"]))
        else:
            # A CUDA graph's: nobody else is served from it.
            pool = BlockPool(is_small, int(info["stream"]), self._ties)
        if info.get("is_expandable", False):
            self._takes_first_fit = False
            tail = pool.unmapped[-1][1] if pool.unmapped else self._new_expandable(pool, address)
            block = expandable_segments.adopt(tail, address, size, device_memory)
        else:
            device_memory.claim(address, size)
            segment = Segment(pool, address, size)
            self._segments[address] = segment
            block = segment.head
        self._reserve(size)
        # Blocks that lie side by side and are free by now are one block.
        sizes: list[tuple[int, bool]] = []
        for piece in info["blocks"]:
            in_use = piece["state"] == "active_allocated"
            if sizes and not in_use and not sizes[-1][1]:
                sizes[-1] = (sizes[-1][0] + int(piece["size"]), False)
            else:
                sizes.append((int(piece["size"]), in_use))
        for index, (piece_size, in_use) in enumerate(sizes):
            rest = block
            if index + 1 < len(sizes):
                order = self._ties.order_of_part(block.order)
                rest = block.split(piece_size, FREE, order)
            if in_use:
                block.state = ALLOCATED
                self.allocated_bytes += block.size
            else:
                pool.insert(block)
            block = rest


def _room(block: Block) -> int:
    """Size of a block, with the address space after it that it can grow into."""
    following = block.next
    if following is not None and following.state == UNMAPPED:
        return block.size + following.size
    return block.size

"""The segments of the caching allocator: how they are allocated, freed and collected."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from bsfind.simulation.allocator import expandable_segments
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.simulation.allocator.blocks import (
    ALLOCATED,
    FREE,
    UNMAPPED,
    Block,
    BlockPool,
    Segment,
    TieBreaker,
)
from bsfind.simulation.allocator.device_memory import ClaimableMemory, DeviceMemoryLike
from bsfind.simulation.allocator.expandable_segments import ExpandableSegment
from bsfind.units import MIB

# c10/core/AllocatorConfig.h: kSmallSize, kSmallBuffer, kMinLargeAlloc, kRoundLarge
LARGEST_SMALL = 1 * MIB
_SMALL_SEGMENT = 2 * MIB
_SMALLEST_OWN_SEGMENT = 10 * MIB
_SEGMENT_ROUNDING = 2 * MIB

_FIRST_EXPANDABLE_ADDRESS = 1 << 45


class SegmentStore:
    """The segments that an allocator holds, and the pools of their free blocks.

    Args:
        device_memory: cudaMalloc and cudaFree.
        settings: the options of the allocator.
        limit_bytes: what may be reserved; None: what the device has.
        total_bytes: memory of the whole device, for the address space of expandable segments;
            None: addresses do not run out.

    Attributes:
        reserved_bytes: total size of the segments.
        peak_reserved_bytes: the largest `reserved_bytes` so far.
        small_pools: stream → free blocks of up to 1 MiB, and what was split from the same segment.
        large_pools: stream → the other free blocks.
        segments: start address → segment.
        ties: numbers the blocks.
        num_large_searches: number of searches for a large block, the clock of garbage collection.
    """

    def __init__(
        self,
        device_memory: DeviceMemoryLike,
        settings: AllocatorSettings,
        limit_bytes: int | None,
        total_bytes: int | None,
    ) -> None:
        self.device_memory = device_memory
        self.settings = settings
        self.limit_bytes = limit_bytes
        self.total_bytes = total_bytes
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.small_pools: dict[int, BlockPool] = {}
        self.large_pools: dict[int, BlockPool] = {}
        self.segments: dict[int, Segment] = {}
        self.ties = TieBreaker(settings.tie_rule)
        self.num_large_searches = 0

    def pool(self, is_small: bool, stream: int) -> BlockPool:
        """Return the pool of a stream; creates it the first time."""
        pools = self.small_pools if is_small else self.large_pools
        if stream not in pools:
            pools[stream] = BlockPool(is_small, stream, self.ties)
        return pools[stream]

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks that have memory, in use or free, in the order of their addresses."""
        for _, segment in sorted(self.segments.items()):
            for block in segment.blocks():
                if block.state != UNMAPPED:
                    yield block

    def allocate(self, pool: BlockPool, size: int) -> Block | None:
        """Return a new block of at least `size` bytes, in no pool, or None if there is no room.

        Models `get_allocation_size` and `alloc_block` of c10/cuda/CUDACachingAllocator.cpp,
        torch 2.13.
        """
        if size <= LARGEST_SMALL:
            segment_size = _SMALL_SEGMENT
        elif size < _SMALLEST_OWN_SEGMENT:
            segment_size = self.settings.large_segment_bytes
        else:
            segment_size = -(-size // _SEGMENT_ROUNDING) * _SEGMENT_ROUNDING
        if self.limit_bytes is not None and self.reserved_bytes + segment_size > self.limit_bytes:
            return None
        if self.settings.expandable_segments:
            start = expandable_segments.find(pool, size) or self._new_expandable(pool).head
            block, mapped_bytes = expandable_segments.allocate(start, size, self.device_memory)
            self._reserve(mapped_bytes)
            return block
        address = self.device_memory.malloc(segment_size)
        if address is None:
            return None
        self._reserve(segment_size)
        segment = Segment(pool, address, segment_size)
        self.segments[address] = segment
        return segment.head

    def release_cached(self) -> None:
        """Free the segments and pages that are free as a whole.

        Models `release_cached_blocks` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        for pools in (self.large_pools, self.small_pools):
            for stream in sorted(pools):
                # Unmapping creates new free blocks, which are not visited.
                for *_, block in pools[stream].free.copy():
                    if block.segment.is_expandable:
                        self._unmap(block)
                    elif not block.is_split:
                        self._release(block)

    def release_oversize(self, pool: BlockPool, size: int) -> bool:
        """Free blocks that are too large to be split until there may be room for `size` bytes.

        Models `release_available_cached_blocks` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.

        Returns:
            Whether it is worth trying to allocate again.
        """
        max_split = self.settings.max_split_bytes
        needed = max(size, max_split)
        free = pool.free
        index = bisect_left(free, (needed,))
        if index < len(free) and not free[index][3].segment.is_expandable:
            self._release(free[index][3])
            return True
        released = 0
        for *_, block in reversed(free[:index]):
            if released >= needed or block.size < max_split:
                break
            if not block.segment.is_expandable:
                released += block.size
                self._release(block)
        return released >= needed

    def collect_garbage(self) -> None:
        """Free large segments that have been free for long, if much of the limit is used.

        Models `garbage_collect_cached_blocks` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        if self.limit_bytes is None:
            return
        threshold = int(self.settings.garbage_collection_threshold * self.limit_bytes)
        excess = self.reserved_bytes - threshold
        if excess <= 0:
            return
        whole = [
            block
            for stream in sorted(self.large_pools)
            for *_, block in self.large_pools[stream].free
            if not block.is_split and not block.segment.is_expandable
        ]
        now = self.num_large_searches
        while whole and excess > 0:
            mean_age = sum(now - block.freed_at for block in whole) / len(whole)
            old = [block for block in whole if now - block.freed_at >= mean_age]
            whole = [block for block in whole if now - block.freed_at < mean_age]
            for block in old:
                excess -= block.size
                self._release(block)

    def adopt(self, info: Mapping[str, Any], device_memory: ClaimableMemory) -> int:
        """Add a segment of a snapshot.

        Args:
            info: the segment, as `torch.cuda.memory_snapshot()` lists it.
            device_memory: this store's device memory.

        Returns:
            The number of allocated bytes in it.

        Raises:
            ValueError: the device has no room for it.
        """
        address, size = int(info["address"]), int(info["total_size"])
        is_small, stream = info["segment_type"] == "small", int(info["stream"])
        if tuple(info.get("segment_pool_id", (0, 0))) == (0, 0):
            pool = self.pool(is_small, stream)
        else:
            pool = BlockPool(
                is_small, stream, self.ties
            )  # of a CUDA graph: it serves no other request
        if info.get("is_expandable", False):
            tail = pool.unmapped[-1][1] if pool.unmapped else None
            if tail is None or tail.address + tail.size < address + size:
                tail = self._new_expandable(pool, address).head
            block = expandable_segments.adopt(tail, address, size, device_memory)
        else:
            device_memory.claim(address, size)
            segment = Segment(pool, address, size)
            self.segments[address] = segment
            block = segment.head
        self._reserve(size)

        # Adjacent free pieces are one block.
        pieces: list[tuple[int, bool]] = []
        for piece in info["blocks"]:
            piece_size, in_use = int(piece["size"]), piece["state"] == "active_allocated"
            if pieces and not in_use and not pieces[-1][1]:
                piece_size += pieces.pop()[0]
            pieces.append((piece_size, in_use))
        allocated_bytes = 0
        for piece_size, in_use in pieces:
            rest = block
            if piece_size < block.size:
                rest = block.split(piece_size, FREE, self.ties.order_of_part(block.order))
            if in_use:
                block.state = ALLOCATED
                allocated_bytes += piece_size
            else:
                pool.insert(block)
            block = rest
        return allocated_bytes

    def copy(self, device_memory: DeviceMemoryLike) -> SegmentStore:
        """Return an independent copy, on a copy of the device memory."""
        copied = SegmentStore(device_memory, self.settings, self.limit_bytes, self.total_bytes)
        copied.reserved_bytes = self.reserved_bytes
        copied.peak_reserved_bytes = self.peak_reserved_bytes
        copied.num_large_searches = self.num_large_searches
        pools: dict[BlockPool, BlockPool] = {}
        for pool in (*self.small_pools.values(), *self.large_pools.values()):
            pools[pool] = copied.pool(pool.is_small, pool.stream)
        for address, segment in self.segments.items():
            pool = segment.pool
            if pool not in pools:
                pools[pool] = BlockPool(pool.is_small, pool.stream, copied.ties)
            copied.segments[address] = segment.copy_to(pools[pool])
        for pool in pools.values():
            pool.free.sort()
            pool.unmapped.sort()
        copied.ties.last = self.ties.last
        return copied

    def _release(self, block: Block) -> None:
        """Free a segment that is one free block."""
        block.segment.pool.remove(block)
        del self.segments[block.address]
        self.device_memory.free(block.address)
        self.reserved_bytes -= block.size

    def _unmap(self, block: Block) -> None:
        """Unmap the pages of a free block of an expandable segment."""
        segment = block.segment
        self.reserved_bytes -= expandable_segments.unmap(block, self.device_memory)
        head = segment.head
        if head.state == UNMAPPED and head.next is None:
            segment.pool.remove_unmapped(head)
            del self.segments[head.address]

    def _reserve(self, nbytes: int) -> None:
        self.reserved_bytes += nbytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _new_expandable(self, pool: BlockPool, address: int | None = None) -> ExpandableSegment:
        """Reserve address space for a pool: 9/8 of the device's memory, in whole pages."""
        if address is None:
            address = _FIRST_EXPANDABLE_ADDRESS
            while address in self.segments:
                address += expandable_segments.MAX_ADDRESS_SPACE
        page_bytes = _SMALL_SEGMENT if pool.is_small else self.settings.large_segment_bytes
        size = expandable_segments.MAX_ADDRESS_SPACE
        if self.total_bytes is not None:
            size = -(-(self.total_bytes + self.total_bytes // 8) // page_bytes) * page_bytes
        segment = ExpandableSegment(pool, address, size, page_bytes)
        self.segments[address] = segment
        pool.insert_unmapped(segment.head)
        return segment

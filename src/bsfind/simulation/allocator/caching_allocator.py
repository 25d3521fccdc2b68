"""PyTorch's CUDA caching allocator, without CUDA.

Models `DeviceCachingAllocator` of c10/cuda/CUDACachingAllocator.cpp, torch 2.6 to 2.14: it returns
the addresses that PyTorch returns if cudaMalloc returns the same ones. Not modelled: `record_stream`,
and the pools of CUDA graphs and other private pools.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bsfind.simulation.allocator.alloc_conf import MIN_BLOCK, AllocatorSettings
from bsfind.simulation.allocator.blocks import (
    ALLOCATED,
    FREE,
    UNMAPPED,
    Block,
    BlockPool,
    Segment,
    TieBreaker,
)
from bsfind.simulation.allocator.device_memory import (
    ClaimableMemory,
    DeviceMemory,
    DeviceMemoryLike,
)
from bsfind.simulation.allocator.segments import LARGEST_SMALL, SegmentStore
from bsfind.units import format_bytes

_NEVER = 1 << 62


class SimulatedOutOfMemoryError(Exception):
    """The simulated device has no room for a request: `torch.cuda.OutOfMemoryError`.

    Attributes:
        requested_bytes: size of the request.
        allocated_bytes: bytes allocated at that moment.
        reserved_bytes: bytes reserved, after the allocator freed its cache.
        is_in_evaluation: whether the request is one of the evaluation pass of a trial.
    """

    is_in_evaluation = False

    def __init__(self, requested_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"out of memory: tried to allocate {format_bytes(requested_bytes)} with "
            f"{format_bytes(allocated_bytes)} allocated and {format_bytes(reserved_bytes)} reserved"
        )
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class CachingAllocator:
    """Allocates blocks of device memory, and caches blocks that are freed.

    Args:
        device_memory: cudaMalloc and cudaFree.
        settings: the options of the allocator; None: PyTorch's defaults.
        limit_bytes: what it may reserve: the fraction of
            `torch.cuda.set_per_process_memory_fraction`, times the memory of the device. None: what
            the device has.
        total_bytes: memory of the whole device; an expandable segment has 9/8 of it in addresses.
            None: addresses do not run out.

    Attributes:
        settings: the options of the allocator.
        allocated_bytes: total size of the allocated blocks (`memory_allocated`).
        peak_allocated_bytes: the largest `allocated_bytes` since `reset_peaks`.
        num_alloc_retries: how often it freed its cache to serve a request.
        num_ooms: how often that was not enough.
    """

    def __init__(
        self,
        device_memory: DeviceMemoryLike,
        settings: AllocatorSettings | None = None,
        *,
        limit_bytes: int | None = None,
        total_bytes: int | None = None,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.num_alloc_retries = 0
        self.num_ooms = 0
        self._use(SegmentStore(device_memory, self.settings, limit_bytes, total_bytes))

    def _use(self, store: SegmentStore) -> None:
        """Use a store; caches in attributes what `malloc` and `free` read."""
        settings = self.settings
        self._store = store
        self._index: dict[int, Block] = {}  # of `block_at`
        self._ties = store.ties
        self._small_pools = store.small_pools
        self._large_pools = store.large_pools
        self._rounds_up = any(settings.roundup_power2_divisions)
        self._numbers_blocks = settings.tie_rule == "block"
        self._expandable = settings.expandable_segments
        self._collects = settings.garbage_collection_threshold > 0
        self._max_split = settings.max_split_bytes
        self._takes_best_fit = not (
            self._expandable
            or self._collects
            or settings.max_split_size_mb is not None
            or any(segment.is_expandable for segment in store.segments.values())
        )
        self._min_large_remainder = MIN_BLOCK if self._expandable else LARGEST_SMALL + 1

    @classmethod
    def from_segments(
        cls,
        device_memory: ClaimableMemory,
        settings: AllocatorSettings,
        segments: Iterable[Mapping[str, Any]],
        *,
        limit_bytes: int | None = None,
        total_bytes: int | None = None,
    ) -> CachingAllocator:
        """Return an allocator in the state of a snapshot; its peaks start from there.

        A snapshot does not say which segment is older: they count as created in the order of their
        addresses, which is true as long as none was freed. Blocks that wait for another stream count
        as free.

        Args:
            device_memory: where the segments are claimed; must have room for them.
            settings: the options of the allocator.
            segments: those of one device, as `torch.cuda.memory_snapshot()` lists them.
            limit_bytes: see the class.
            total_bytes: see the class.

        Raises:
            ValueError: the segments overlap, or do not fit.
        """
        allocator = cls(device_memory, settings, limit_bytes=limit_bytes, total_bytes=total_bytes)
        store = allocator._store
        for info in sorted(segments, key=lambda info: int(info["address"])):
            allocator.allocated_bytes += store.adopt(info, device_memory)
        allocator._use(store)
        allocator.reset_peaks()
        return allocator

    def copy(self, device_memory: DeviceMemoryLike | None = None) -> CachingAllocator:
        """Return an independent copy.

        Args:
            device_memory: a copy of this allocator's device memory; None: `DeviceMemory` is copied.

        Raises:
            TypeError: no device memory was given, and this allocator's is of another kind.
        """
        if device_memory is None:
            if not isinstance(self.device_memory, DeviceMemory):
                raise TypeError("`device_memory` is needed: only `DeviceMemory` copies itself")
            device_memory = self.device_memory.copy()
        copied = CachingAllocator(device_memory, self.settings)
        copied.allocated_bytes = self.allocated_bytes
        copied.peak_allocated_bytes = self.peak_allocated_bytes
        copied.num_alloc_retries = self.num_alloc_retries
        copied.num_ooms = self.num_ooms
        copied._use(self._store.copy(device_memory))
        return copied

    @property
    def device_memory(self) -> DeviceMemoryLike:
        """The device memory that segments are allocated in."""
        return self._store.device_memory

    @property
    def limit_bytes(self) -> int | None:
        """Bytes that it may reserve; None: what the device has."""
        return self._store.limit_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes reserved (`memory_reserved`)."""
        return self._store.reserved_bytes

    @property
    def peak_reserved_bytes(self) -> int:
        """The largest `reserved_bytes` since `reset_peaks`."""
        return self._store.peak_reserved_bytes

    def malloc(self, nbytes: int, stream: int = 0) -> Block:
        """Return a block of at least `nbytes` bytes for work on `stream`.

        The object may be used for another block after this one is freed. As in PyTorch, a request
        for no bytes is answered with address 0.

        Raises:
            SimulatedOutOfMemoryError: the device is full even after the cache was freed.
            ValueError: a negative number of bytes.
        """
        # Models `malloc`, `should_split` and `alloc_found_block` of
        # c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        if nbytes <= 0:
            return _empty_block(nbytes)
        size = self.settings.round_size(nbytes) if self._rounds_up else (nbytes + 511) & -512
        if size <= LARGEST_SMALL:
            pool = self._small_pools.get(stream)
            min_remainder = MIN_BLOCK
        else:
            pool = self._large_pools.get(stream)
            min_remainder = self._min_large_remainder
        if pool is None:
            pool = self._store.pool(size <= LARGEST_SMALL, stream)

        free = pool.free
        block: Block | None
        if self._takes_best_fit:
            index = bisect_left(free, (size,))
            block = free.pop(index)[3] if index < len(free) else None
        else:
            block = self._search(pool, size)
            if size >= self._max_split and not self._expandable:
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
                rest.freed_at = self._store.num_large_searches
        block.state = ALLOCATED
        self.allocated_bytes = allocated = self.allocated_bytes + block.size
        if allocated > self.peak_allocated_bytes:
            self.peak_allocated_bytes = allocated
        return block

    def free(self, block: Block) -> None:
        """Free a block; its memory stays in the cache.

        Raises:
            ValueError: the block is not in use.
        """
        # Models `free_block` and `try_merge_blocks` of c10/cuda/CUDACachingAllocator.cpp.
        if block.state != ALLOCATED:
            raise ValueError(f"{block!r} is not in use")
        size = block.size
        if not size:
            return
        self.allocated_bytes -= size
        order = block.order
        free = block.segment.pool.free
        block.state = FREE
        previous = block.prev
        following = block.next
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
            block.freed_at = self._store.num_large_searches

    def empty_cache(self) -> None:
        """Free all cached segments without an allocated block."""
        self._store.release_cached()

    def reset_peaks(self) -> None:
        """Set the peaks to what is allocated and reserved now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self._store.peak_reserved_bytes = self._store.reserved_bytes

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks that have memory, in use or free, in the order of their addresses."""
        return self._store.blocks()

    def allocated_blocks(self) -> Iterator[Block]:
        """Yield the blocks in use, in the order of their addresses."""
        return (block for block in self._store.blocks() if block.state == ALLOCATED)

    def block_at(self, address: int) -> Block:
        """Return the block in use that starts at `address`.

        Raises:
            KeyError: there is none.
        """
        # Blocks keep their address and are not used again after a merge, so an entry of the index
        # that is allocated is right; the index is rebuilt for what it lacks.
        block = self._index.get(address)
        if block is None or block.state != ALLOCATED:
            self._index = {block.address: block for block in self.allocated_blocks()}
            block = self._index.get(address)
        if block is None:
            raise KeyError(f"no block in use at {address:#x}")
        return block

    def _search(self, pool: BlockPool, size: int) -> Block | None:
        """Take the best block out of the pool, under the rules of the settings.

        Models `get_free_block` of c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        if self._collects and not pool.is_small and self._store.limit_bytes is not None:
            self._store.num_large_searches += 1
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self._expandable:
            # What a block can grow to counts as its size.
            while (
                free[index][3].segment.is_expandable
                and index + 1 < len(free)
                and _room(free[index + 1][3]) < _room(free[index][3])
            ):
                index += 1
        else:
            while free[index][3].segment.is_expandable:
                index += 1
                if index == len(free):
                    return None
        block = free[index][3]
        if size < self._max_split:
            if block.size >= self._max_split:
                return None
        elif block.size >= size + self.settings.max_non_split_rounding_bytes:
            return None
        del free[index]
        return block

    def _new_block(self, pool: BlockPool, size: int, nbytes: int) -> Block:
        """Allocate on the device, if necessary after freeing the cache."""
        store = self._store
        if self._collects:
            store.collect_garbage()
        block = store.allocate(pool, size)
        if (
            block is None
            and self.settings.max_split_size_mb is not None
            and store.release_oversize(pool, size)
        ):
            block = store.allocate(pool, size)
        if block is None:
            store.release_cached()
            self.num_alloc_retries += 1
            block = store.allocate(pool, size)
        if block is None:
            self.num_ooms += 1
            raise SimulatedOutOfMemoryError(nbytes, self.allocated_bytes, store.reserved_bytes)
        return block


def _room(block: Block) -> int:
    """Return the size of a block with the address space after it that it can grow into."""
    following = block.next
    if following is not None and following.state == UNMAPPED:
        return block.size + following.size
    return block.size


def _empty_block(nbytes: int) -> Block:
    if nbytes < 0:
        raise ValueError(f"cannot allocate {nbytes} bytes")
    block = Segment(BlockPool(True, 0, TieBreaker("address")), 0, 0).head
    block.state = ALLOCATED
    return block

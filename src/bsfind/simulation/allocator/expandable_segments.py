"""Expandable segments: address space whose pages are mapped to memory on demand.

Models `ExpandableSegment` and the functions `find_expandable_block`, `map_block`,
`try_allocate_expandable_block` and `unmap_block` of c10/cuda/CUDACachingAllocator.cpp, torch 2.6 to
2.13.
"""

from __future__ import annotations

from bsfind.simulation.allocator.blocks import ALLOCATED, FREE, UNMAPPED, Block, BlockPool, Segment
from bsfind.simulation.allocator.device_memory import ClaimableMemory, DeviceMemoryLike

# Distance of the segments of several pools, bytes: more than 9/8 of the memory of any GPU.
MAX_ADDRESS_SPACE = 1 << 40


class ExpandableSegment(Segment):
    """Address space in pages, some of which are mapped.

    Attributes:
        start: first address, from which pages are counted.
        page_bytes: size of a page: 2 MiB in the small pool, a large segment in the large one.
        pages: page number → address of the device memory behind it.
    """

    __slots__ = ("page_bytes", "pages", "start")
    is_expandable = True

    def __init__(self, pool: BlockPool, address: int, size: int, page_bytes: int) -> None:
        super().__init__(pool, address, size)
        self.head.state = UNMAPPED
        self.start = address
        self.page_bytes = page_bytes
        self.pages: dict[int, int] = {}

    def _bare_copy(self, pool: BlockPool) -> ExpandableSegment:
        copied = ExpandableSegment(pool, self.start, 0, self.page_bytes)
        copied.pages = self.pages.copy()
        return copied

    def map_pages(self, first: int, end: int, device_memory: DeviceMemoryLike) -> bool:
        """Map the pages `first` … `end`, or none of them if the device is full; returns whether it did."""
        for page in range(first, end):
            token = device_memory.malloc(self.page_bytes)
            if token is None:
                self.unmap_pages(first, page, device_memory)
                return False
            self.pages[page] = token
        return True

    def unmap_pages(self, first: int, end: int, device_memory: DeviceMemoryLike) -> None:
        """Unmap the pages `first` … `end`."""
        for page in range(first, end):
            device_memory.free(self.pages.pop(page))


def find(pool: BlockPool, size: int) -> Block | None:
    """Return the start of the lowest run of unallocated blocks of at least `size` bytes."""
    for _, unmapped in pool.unmapped:
        start = unmapped
        if start.prev is not None and start.prev.state == FREE:
            start = start.prev
        room = 0
        block: Block | None = start
        while block is not None and block.state != ALLOCATED:
            room += block.size
            if room >= size:
                return start
            block = block.next
    return None


def allocate(start: Block, size: int, device_memory: DeviceMemoryLike) -> tuple[Block | None, int]:
    """Map memory from `start` on, until there is a free block of `size` bytes.

    Args:
        start: start of a run of unallocated blocks of at least `size` bytes (see `find`).
        size: bytes needed.
        device_memory: the device memory that pages are mapped to.

    Returns:
        The block, removed from its pool, or None if the device is full; and the number of bytes that
        were mapped, which can be more than 0 even without a block.
    """
    block = start
    mapped_bytes = 0
    if block.state == UNMAPPED:
        mapped = _map(block, min(block.size, size), device_memory)
        if mapped is None:
            return None, 0
        block, mapped_bytes = mapped
    while block.size < size:
        following = block.next
        assert following is not None
        mapped = _map(following, min(size - block.size, following.size), device_memory)
        if mapped is None:
            return None, mapped_bytes
        block = mapped[0]
        mapped_bytes += mapped[1]
    block.segment.pool.remove(block)
    return block, mapped_bytes


def unmap(block: Block, device_memory: DeviceMemoryLike) -> int:
    """Unmap the whole pages inside a free block; returns their size in bytes."""
    segment = block.segment
    assert isinstance(segment, ExpandableSegment)
    pool, page = segment.pool, segment.page_bytes
    offset = block.address - segment.start
    first, end = -(-offset // page), (offset + block.size) // page
    if first >= end:
        return 0
    segment.unmap_pages(first, end, device_memory)
    pool.remove(block)
    size = (end - first) * page
    before = first * page - offset
    # If the block is cut, the middle keeps its place in the order of blocks.
    unmapped = block
    if before:
        unmapped = block.split(before, UNMAPPED, block.order)
        block.order = pool.ties.order_of_part(block.order)
        pool.insert(block)
    if unmapped.size > size:
        pool.insert(unmapped.split(size, FREE, pool.ties.order_of_part(unmapped.order)))
    unmapped.state = UNMAPPED
    following = unmapped.next
    if following is not None and following.state == UNMAPPED:
        pool.remove_unmapped(following)
        unmapped.absorb_next()
    previous = unmapped.prev
    if previous is not None and previous.state == UNMAPPED:
        previous.order = unmapped.order
        previous.absorb_next()
    else:
        pool.insert_unmapped(unmapped)
    return size


def adopt(tail: Block, address: int, size: int, device_memory: ClaimableMemory) -> Block:
    """Add a range of pages that are mapped already to the unmapped end of a segment.

    Returns:
        The range as one free block, in no pool.
    """
    segment = tail.segment
    assert isinstance(segment, ExpandableSegment)
    pool, page = segment.pool, segment.page_bytes
    first = (address - segment.start) // page
    for number in range(first, first + size // page):
        device_memory.claim(segment.start + number * page, page)
        segment.pages[number] = segment.start + number * page
    block = tail
    if address > tail.address:
        order = pool.ties.order_of_part(tail.order)
        block = tail.split(address - tail.address, UNMAPPED, order)
    else:
        pool.remove_unmapped(tail)
    order = pool.ties.order_of_part(block.order)
    pool.insert_unmapped(block.split(size, UNMAPPED, order))
    block.state = FREE
    return block


def _map(block: Block, size: int, device_memory: DeviceMemoryLike) -> tuple[Block, int] | None:
    """Map the first `size` bytes of an unmapped block, in whole pages.

    Returns:
        The free block that they are a part of now, and the bytes mapped; None if the device is full.
    """
    segment = block.segment
    assert isinstance(segment, ExpandableSegment)
    pool, page = segment.pool, segment.page_bytes
    first = (block.address - segment.start) // page
    end = first - (-size // page)
    if not segment.map_pages(first, end, device_memory):
        return None
    pool.remove_unmapped(block)
    mapped_bytes = (end - first) * page
    if mapped_bytes < block.size:
        order = pool.ties.order_of_part(block.order)
        pool.insert_unmapped(block.split(mapped_bytes, UNMAPPED, order))
    block.state = FREE
    following = block.next
    if following is not None and following.state == FREE:
        pool.remove(following)
        block.absorb_next()
    previous = block.prev
    if previous is not None and previous.state == FREE:
        pool.remove(previous)
        previous.order = block.order
        previous.absorb_next()
        block = previous
    pool.insert(block)
    return block, mapped_bytes

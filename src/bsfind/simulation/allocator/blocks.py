"""The pieces of cached memory: blocks, the segments that they tile, pools of free blocks."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from bsfind.simulation.allocator.alloc_conf import TieRule

FREE = 0
ALLOCATED = 1
# Address space of an expandable segment without memory behind it.
UNMAPPED = 2


class Block:
    """A range of memory of one segment.

    Attributes:
        address: first address.
        size: bytes; what `memory_allocated` counts while the block is allocated.
        state: `FREE`, `ALLOCATED` or `UNMAPPED`.
        order: of two free blocks of one size, the one of lower order, then of lower address, serves
            a request (see `TieBreaker`).
        segment: the segment that it is a part of.
        prev: the block before it in its segment.
        next: the block after it in its segment.
        freed_at: number of searches in its pool before it became free (garbage collection).
    """

    __slots__ = ("address", "freed_at", "next", "order", "prev", "segment", "size", "state")

    def __init__(
        self,
        address: int,
        size: int,
        segment: Segment,
        state: int,
        order: int,
        prev: Block | None = None,
        next: Block | None = None,
    ) -> None:
        self.address = address
        self.size = size
        self.segment = segment
        self.state = state
        self.order = order
        self.prev = prev
        self.next = next
        self.freed_at = 0

    def __repr__(self) -> str:
        state = ("free", "allocated", "unmapped")[self.state]
        return f"<Block {self.address:#x}, {self.size} bytes, {state}>"

    @property
    def is_split(self) -> bool:
        """Whether it shares its segment with other blocks."""
        return self.prev is not None or self.next is not None

    def split(self, size: int, state: int, order: int) -> Block:
        """Keep the first `size` bytes; return the rest as a new block."""
        rest = Block(
            self.address + size, self.size - size, self.segment, state, order, self, self.next
        )
        if self.next is not None:
            self.next.prev = rest
        self.next = rest
        self.size = size
        return rest

    def absorb_next(self) -> None:
        """Merge the block after this one into it."""
        absorbed = self.next
        assert absorbed is not None
        self.size += absorbed.size
        self.next = absorbed.next
        if self.next is not None:
            self.next.prev = self


class TieBreaker:
    """Numbers blocks, which decides which of two free blocks of one size serves a request.

    Args:
        rule: `address`: all numbers are equal; `segment`: one number per segment; `block`: one
            number per block that was ever created.
    """

    __slots__ = ("last", "rule")

    def __init__(self, rule: TieRule) -> None:
        self.rule = rule
        self.last = 0

    def order_of_segment(self) -> int:
        """Return the order of the first block of a new segment."""
        if self.rule != "address":
            self.last += 1
        return self.last

    def order_of_part(self, order: int) -> int:
        """Return the order of a new block that is split off one of the given order."""
        if self.rule == "block":
            self.last += 1
            return self.last
        return order


class BlockPool:
    """The free blocks of one stream, small or large.

    PyTorch keeps all streams of a pool in one set, ordered by stream first; a block serves its own
    stream only, so a pool per stream answers the same.

    Attributes:
        is_small: whether it serves requests up to 1 MiB.
        stream: the stream whose work uses these blocks.
        ties: numbers the blocks.
        free: `(size, order, address, block)`, sorted; PyTorch takes the first that is large enough.
        unmapped: `(address, block)`, sorted: address space of expandable segments.
    """

    __slots__ = ("free", "is_small", "stream", "ties", "unmapped")

    def __init__(self, is_small: bool, stream: int, ties: TieBreaker) -> None:
        self.ties = ties
        self.is_small = is_small
        self.stream = stream
        self.free: list[tuple[int, int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []

    def insert(self, block: Block) -> None:
        """Add a block that is free."""
        insort(self.free, (block.size, block.order, block.address, block))

    def remove(self, block: Block) -> None:
        """Take out a block that is free, before its size or address changes."""
        key = (block.size, block.order, block.address)
        del self.free[bisect_left(self.free, key)]

    def insert_unmapped(self, block: Block) -> None:
        """Add a block without memory."""
        insort(self.unmapped, (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Take out a block without memory, before its address changes."""
        del self.unmapped[bisect_left(self.unmapped, (block.address,))]


class Segment:
    """Memory of one cudaMalloc, tiled by its blocks.

    Attributes:
        pool: the pool of its free blocks.
        head: its first block; the same object as long as the segment exists.
        is_expandable: whether it is an expandable segment.
    """

    __slots__ = ("head", "pool")
    is_expandable = False

    def __init__(self, pool: BlockPool, address: int, size: int) -> None:
        self.pool = pool
        self.head = Block(address, size, self, FREE, pool.ties.order_of_segment())

    def blocks(self) -> Iterator[Block]:
        """Yield its blocks in the order of their addresses."""
        block: Block | None = self.head
        while block is not None:
            yield block
            block = block.next

    def copy_to(self, pool: BlockPool) -> Segment:
        """Return a copy; appends its free blocks to those of `pool` without sorting."""
        copied = self._bare_copy(pool)
        last: Block | None = None
        for block in self.blocks():
            new = Block(block.address, block.size, copied, block.state, block.order, last)
            new.freed_at = block.freed_at
            if last is None:
                copied.head = new
            else:
                last.next = new
            last = new
            if new.state == FREE:
                pool.free.append((new.size, new.order, new.address, new))
            elif new.state == UNMAPPED:
                pool.unmapped.append((new.address, new))
        return copied

    def _bare_copy(self, pool: BlockPool) -> Segment:
        return Segment(pool, self.head.address, self.head.size)

"""The CUDA streams of a traced program: which one is current, and so where memory is allocated.

The caching allocator keeps memory by stream, and gives a block back to the stream that it was allocated
on. A backward pass runs each node on the stream of the forward pass that made it, whatever stream is
current where it is called (torch/csrc/autograd/engine.cpp, torch 2.6-2.13).
"""

from __future__ import annotations

import threading
from bisect import bisect_right

from bsfind.simulation.trace.torch_private import (
    current_backward,
    current_node,
    next_sequence_number,
    sequence_number,
)

_POOL = 32
"""Streams of one priority of which CUDA has more than a program asks for: the next one is the first
again (c10/cuda/CUDAStream.cpp, torch 2.6-2.13)."""

DEFAULT = 0
"""The stream that is current unless the program chooses one."""


class _Thread(threading.local):
    """What is current in a thread.

    Attributes:
        stream: the stream.
        first: of the nodes of graphs that were made on another than the default stream: the first sequence
            number of those that were made in a row.
        nodes: of each of these rows, the number after its last, and the stream.
        chosen_in: a node of a backward pass, and the stream that was chosen in it.
    """

    stream = DEFAULT
    chosen_in: tuple[object, int] | None = None

    def __init__(self) -> None:
        self.first: list[int] = []
        self.nodes: list[tuple[int, int]] = []


class Streams:
    """The streams that a program makes and chooses.

    Attributes:
        are_used: whether another than the default one has been current.
    """

    def __init__(self) -> None:
        self.are_used = False
        self._here = _Thread()
        self._made: dict[bool, list[int]] = {False: [], True: []}
        self._numbers: dict[int, tuple[int, int]] = {}

    def make(self, block: int, *, has_priority: bool) -> int:
        """Return the stream that a program gets which asks for a new one.

        Args:
            block: number of the recorder's next block.
            has_priority: whether its work goes before that of others.
        """
        made = self._made[has_priority]
        made.append(block)
        return 1 + 2 * ((len(made) - 1) % _POOL) + has_priority

    @property
    def current(self) -> int:
        """The stream on which this thread works."""
        if not self.are_used:
            return DEFAULT
        here = self._here
        if current_backward() == -1:
            return here.stream
        node = _node()
        if here.chosen_in is not None and here.chosen_in[0] == node:
            return here.chosen_in[1]
        return here.stream if node is None else self._made_on(node[1])

    def choose(self, stream: int) -> None:
        """Let a stream be current in this thread."""
        if stream == self.current:
            return
        self.are_used = True
        here = self._here
        if current_backward() != -1:
            here.chosen_in = (_node(), stream)
            return
        number = next_sequence_number()
        if here.stream != DEFAULT:
            if here.first[-1] == number:
                here.first.pop()
                here.nodes.pop()
            else:
                here.nodes[-1] = (number, here.stream)
        if stream != DEFAULT:
            here.first.append(number)
            here.nodes.append((1 << 62, stream))
        here.stream = stream

    def _made_on(self, number: int) -> int:
        index = bisect_right(self._here.first, number) - 1
        if index < 0:
            return DEFAULT
        end, stream = self._here.nodes[index]
        return stream if number < end else DEFAULT

    def number_of(self, stream: int, block: int) -> int:
        """Return the number of a stream in the order of their first use.

        Args:
            stream: the stream.
            block: number of the recorder's next block.
        """
        if stream == DEFAULT:
            return DEFAULT
        known = self._numbers.get(stream)
        if known is None:
            known = self._numbers[stream] = (1 + len(self._numbers), block)
        return known[0]

    def rewind(self, count: int) -> None:
        """Forget the streams that were made, and those that were used, since block `count`."""
        if not self.are_used:
            return
        for made in self._made.values():
            made[:] = [block for block in made if block < count]
        for stream in [s for s, (_, block) in self._numbers.items() if block >= count]:
            del self._numbers[stream]
        if self._here.stream == DEFAULT:
            self._here.first.clear()
            self._here.nodes.clear()


def _node() -> tuple[str, int] | None:
    """Return what tells the node that runs in a backward pass from others; None between them."""
    node = current_node()
    return None if node is None else (node.name(), sequence_number(node))

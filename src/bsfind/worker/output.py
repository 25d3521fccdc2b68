"""What a worker prints, line by line: bounded, however much it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

# What torch 2.13 writes to stderr whenever it meets the limit, which a search does on purpose.
_EXPECTED = re.compile(
    r"CUDACachingAllocator\.cpp:\d+\] "
    r"(memory allocation|expandable_segments: memory mapping) failed with OOM"
)
_LONGEST_LINE = 4096
_BURST = 200_000
_RATE = 20_000
"""Bytes that are passed on at once, and for each second after. A line costs some more than its bytes."""
_COST_OF_LINE = 100
_KEPT = 16_384
_LAST_LINES = 15


class Output:
    """Passes lines on; cuts long ones, and drops what comes faster than it can be shown or read.

    Args:
        on_line: called with each line.
        clock: seconds.
    """

    def __init__(
        self, on_line: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_line = on_line
        self._clock = clock
        self._then_s = clock()
        self._allowed = float(_BURST)
        self._line = bytearray()
        self._cut = 0
        self._dropped = 0
        self._recent = b""

    def feed(self, data: bytes) -> None:
        """Take in what was printed next."""
        self._recent = (self._recent + data)[-_KEPT:]
        now_s = self._clock()
        self._allowed = min(_BURST, self._allowed + _RATE * (now_s - self._then_s))
        self._then_s = now_s
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._allowed <= 0:
                self._dropped += data.count(b"\n", start)
                start = data.rfind(b"\n") + 1
                self._line.clear()
                self._cut = 0
                break
            self._add(data[start:end])
            self._pass_on()
            start = end + 1
        self._add(data[start:])

    def _add(self, part: bytes) -> None:
        room = _LONGEST_LINE - len(self._line)
        self._line += part[:room]
        self._cut += max(0, len(part) - room)

    def _pass_on(self) -> None:
        line = self._line.decode(errors="replace").rstrip("\r")
        if self._cut:
            line += f" … ({self._cut:,} bytes more)"
        self._line.clear()
        self._cut = 0
        if not _EXPECTED.search(line):
            self._tell_dropped()
            self._allowed -= len(line) + _COST_OF_LINE
            self._on_line(line)

    def _tell_dropped(self) -> None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self._on_line(f"({count:,} lines that the user's code printed are left out here)")

    def end(self) -> None:
        """Pass on what is left."""
        if self._line:
            self._pass_on()
        self._tell_dropped()

    @property
    def last_lines(self) -> str:
        """The last lines, for an error that they may explain."""
        lines = self._recent.decode(errors="replace").splitlines()
        told = [line[:_LONGEST_LINE] for line in lines if not _EXPECTED.search(line)]
        return "\n".join(told[-_LAST_LINES:])

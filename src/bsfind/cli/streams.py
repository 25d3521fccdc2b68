"""stdin, stdout and stderr as the command line uses them, whatever the caller made of them.

A stream that is closed is replaced by the null device. Writing never raises: what a stream does not take (a
reader that is gone, a full disk) is discarded, `finish` tells it at the end. A character that the encoding
does not have has a substitute.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import sys
from typing import IO, Any, cast

from bsfind.errors import UsageError

_WIDEST = 400
"""Columns and lines of a terminal that are believed; COLUMNS may say anything."""

_SUBSTITUTES = {"·": "-", "–": "-", "→": "->", "…": "...", "×": "x", "\N{NO-BREAK SPACE}": " "}


class _Sink(io.RawIOBase):
    """Passes bytes on until one write fails.

    Attributes:
        error: why it failed; None if it did not.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest and self.error is None:
            try:
                written = self._raw.write(rest)
                if written is None:  # another process has made the stream non-blocking
                    select.select([], [self._raw], [])
                rest = rest[written or 0 :]
            except OSError as error:
                self.error = error
        return len(data)


_sinks: dict[str, _Sink] = {}


def prepare() -> None:
    """Replace the streams of this process, and sizes in the environment that are none.

    Must run before anything opens a file: it would get the number of a closed stream.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, number in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        if old is None:
            old = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, f"__{name}__", old)
        if type(old) is io.TextIOWrapper:  # a subclass is of a test or an editor
            sink = _sinks[name] = _Sink(getattr(old.buffer, "raw", old.buffer))
            stream = io.TextIOWrapper(
                cast(IO[bytes], sink),
                encoding=old.encoding,
                errors="bsfind",
                line_buffering=old.line_buffering,
                write_through=old.write_through,
            )
            setattr(sys, name, stream)
    for name in ("COLUMNS", "LINES"):
        if name in os.environ:
            try:
                size = int(os.environ[name])
            except ValueError:
                size = 0
            if size > 0:
                os.environ[name] = str(min(size, _WIDEST))
            else:
                del os.environ[name]


def finish() -> None:
    """Write what is left.

    Raises:
        UsageError: stdout did not take all of the answer, for another reason than that nobody reads it.
    """
    sys.stdout.flush()
    error = _sinks["stdout"].error if "stdout" in _sinks else None
    if error is not None and not isinstance(error, BrokenPipeError):
        raise UsageError(f"cannot write the answer: {error.strerror or error}")


def as_written(text: str) -> str:
    """Return a text as stdout can write it: Click writes UTF-8 where the encoding is ASCII."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "bsfind").decode(encoding)


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return (
        "".join(_SUBSTITUTES.get(c) or c.encode("unicode_escape").decode() for c in characters),
        error.end,
    )


codecs.register_error("bsfind", _substitute)

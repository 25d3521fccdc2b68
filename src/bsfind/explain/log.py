"""A log, cut into the pieces that may tell of an error.

Reads any stream of bytes once, with bounded memory: lines are cleaned of colours, carriage returns,
time stamps and the names that launchers put in front; a line that may matter opens a piece, which
takes the lines around it. Lines of different ranks belong to different pieces.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from bsfind.explain.texts import HEAD, KEYS

_LONGEST_LINE = 4 << 10
_CONTEXT = 40  # lines of a traceback kept from before the line that matters
_FOLLOWING = 8  # lines after it in which its message may go on
_LONGEST_PIECE = 60
_WIDEST_PIECE = 12 << 10  # characters
_ACTIVE = 60  # lines after which an open piece ends, whoever wrote them
_MOST_STREAMS = 512
_RECENT = 200  # lines kept as they are, from before a line that matters: of all ranks together

_ESCAPES = re.compile(
    r"(?:\x1b|\\x1b|\\033|\\u001b|\^\[)\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

_TIME = r"\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?"
_DATE = r"(?:\d{4}[-/]\d{2}[-/]\d{2}|\d{2}-\d{2})"
_PREFIXES = (
    re.compile(rf"\[?{_DATE}[T _]{_TIME}(?:Z|[+-]\d\d:?\d\d)?\]?[ \t]*[|:]?[ \t]*"),
    re.compile(rf"\[?{_TIME}\]?[ \t]*[|:]?[ \t]+"),
    re.compile(r"(?:ERROR|INFO|WARNING|CRITICAL)[ \t]*[|:]?[ \t]+(?=\[|\d|\()"),
    re.compile(r"\[\w+\.py:\d+\][ \t]*"),
)
_FRAME = re.compile(
    r"^\s*(?:(?:[│┃║|>*]|#+|//)\s)+\s*(?=\S)|^E {3,}|\s*[│┃║]\s*$|\s{3,}\S+\.py:\d+\s*$"
)
"""Borders and columns of rich's tracebacks and logs, marks of quotations and comments, pytest's `E`."""
_RANKS = (
    re.compile(
        r"\[(?:rank|default|worker|local_rank|r)[ _:=]?(?P<rank>\d{1,6})\]:?[ \t]?", re.IGNORECASE
    ),
    re.compile(r"\[\d+,(?P<rank>\d{1,6})\]<std(?:err|out)>:?[ \t]?"),
    re.compile(r"rank[ _:=]?(?P<rank>\d{1,6})[ \t]?[:|\]][ \t]?", re.IGNORECASE),
    re.compile(r"(?P<rank>\d{1,6}):[ \t]+(?=\S)"),
    re.compile(
        r"\((?P<source>[A-Za-z][\w.]*?(?:TP(?P<rank>\d+))?)[ ,]+(?:pid|ip)=[\w.:, =]{1,60}\)[ \t]*"
    ),
    re.compile(r"\((?P<source>EngineCore\w*|APIServer\w*|Worker\w*)\)[ \t]*"),
)
_STEP = re.compile(
    r"\|\s*(\d+)/\d+\s*\[|\b(?:global_)?(?:step|iter(?:ation)?|batch)\b\W{1,3}(\d+)", re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """Who wrote a line: a rank, or a process by name."""

    rank: int | None = None
    name: str | None = None


@dataclass
class Progress:
    """How far the program had come, as far as its log says.

    Attributes:
        step: the highest step or iteration that was named.
        lines: lines read.
    """

    step: int | None = None
    lines: int = 0


@dataclass
class Piece:
    """Lines that belong together, around one that may tell of an error."""

    source: Source
    line: int
    lines: list[str]
    context: list[str] = field(default_factory=list)
    step: int | None = None

    @property
    def text(self) -> str:
        """The lines as they stand in the log."""
        return "\n".join(self.lines)


def clean(line: str) -> tuple[Source | None, str]:
    """Take colours, time stamps and the launcher's prefix off a line; None if no one is named."""
    line = line.rstrip()
    if _DIRTY.search(line) is not None:
        line = _ESCAPES.sub("", line)
        line = _CONTROL.sub("", line.replace("^M", "\r").rsplit("\r", 1)[-1]).rstrip()
        line = _unescape(_FRAME.sub("", line))
    if _BEGINS_WITH_PREFIX.match(line) is None:
        return None, line
    source: Source | None = None
    at = 0
    for _ in range(6):
        indent = len(line) - len(line[at:].lstrip(" \t"))
        for pattern in _RANKS if source is None else ():
            found = pattern.match(line, indent)
            if found is not None:
                groups = found.groupdict()
                rank = groups.get("rank")
                source = Source(int(rank) if rank else None, groups.get("source"))
                at = found.end()
                break
        else:
            for pattern in _PREFIXES:
                found = pattern.match(line, indent)
                if found is not None:
                    at = found.end()
                    break
            else:
                break
    # A text in a frame, or quoted, may have been given its prefix later.
    return source, _FRAME.sub("", line[at:]) if at else line


def _unescape(line: str) -> str:
    """Read a text that was written as Markdown, or within quotation marks."""
    return _ESCAPED.sub(r"\1", line) if "\\" in line else line


_ESCAPED = re.compile(r"\\([_*<>`\"])")
_BEGINS_WITH_PREFIX = re.compile(
    r"\s*[\[(\d]|\s*(?:rank|ERROR|INFO|WARNING|CRITICAL)", re.IGNORECASE
)
_DIRTY = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\\^│┃║|>*#/]|^E   |\.py:\d+\s*$")


_KEYS = tuple(key.encode() for key in KEYS)


def _matters(line: bytes) -> bool:
    lowered = line.lower()
    return any(map(lowered.__contains__, _KEYS))  # runs for every line of a log: no generator


@dataclass
class _Stream:
    context: deque[str] = field(default_factory=lambda: deque(maxlen=_CONTEXT))
    piece: Piece | None = None
    silent: int = 0


def pieces(stream: BinaryIO, progress: Progress) -> Iterator[Piece]:
    """Read a log and yield its pieces, in the order in which they end.

    Args:
        stream: the log, as bytes; what is not UTF-8 is replaced.
        progress: brought up to date while the log is read.
    """
    streams: dict[Source, _Stream] = {}
    recent: deque[bytes] = deque(maxlen=_RECENT)
    last = Source()
    before = last, ""
    active = 0  # lines for which pieces may still be open
    for raw in _lines(stream, progress):
        matters = _matters(raw)
        if not matters and active == 0:
            recent.append(raw)  # most lines of a log end here
            continue
        active = _ACTIVE if matters else active - 1
        while recent:
            number = progress.lines - len(recent)
            source, line = _attribute(recent.popleft(), last, streams)
            last, before = source, (source, line)
            _note_step(line, progress)
            yield from _take(_stream_of(streams, source), source, line, number, progress)
        source, line = _attribute(raw, last, streams)
        last = source
        _note_step(line, progress)
        if source not in streams and len(streams) >= _MOST_STREAMS:
            dropped = streams.pop(next(iter(streams)))
            if dropped.piece is not None:
                yield dropped.piece
        state = _stream_of(streams, source)
        if (
            source == Source() != before[0]
        ):  # a line may go on without the prefix that it began with
            state.context.append(before[1])
        before = source, line
        yield from _take(state, source, line, progress.lines, progress, matters=matters)
        if active == 0:
            yield from _close(streams)
    yield from _close(streams)


def _lines(stream: BinaryIO, progress: Progress) -> Iterator[bytes]:
    """Read line after line; a message that was written as JSON or a literal has its own lines within."""
    while raw := stream.readline(_LONGEST_LINE):
        progress.lines += 1
        if b"\\n" in raw and _QUOTED.search(raw):
            yield from re.split(rb"(?:\\r)?\\n", raw)
        else:
            yield raw


_QUOTED = re.compile(rb"[\"'].{0,2000}(?<!\\)\\n", re.DOTALL)


def _attribute(raw: bytes, last: Source, streams: dict[Source, _Stream]) -> tuple[Source, str]:
    source, line = clean(raw.decode("utf-8", errors="replace"))
    if source is None:
        # A wrapped line has lost the prefix of the line that it continues.
        is_open = last in streams and streams[last].piece is not None
        source = last if is_open and line.strip() else Source()
    return source, line


def _stream_of(streams: dict[Source, _Stream], source: Source) -> _Stream:
    if source not in streams:
        streams[source] = _Stream()
    return streams[source]


def _close(streams: dict[Source, _Stream]) -> Iterator[Piece]:
    for state in streams.values():
        if state.piece is not None:
            yield state.piece
            state.context.extend(state.piece.lines)
            state.piece = None


def _take(
    state: _Stream,
    source: Source,
    line: str,
    number: int,
    progress: Progress,
    *,
    matters: bool = False,
) -> Iterator[Piece]:
    piece = state.piece
    if piece is not None:
        again = matters and HEAD.search(line) and HEAD.search(piece.text)
        state.silent = 0 if matters else state.silent + 1
        if again or state.silent > _FOLLOWING or _is_full(piece):
            yield piece
            state.context.extend(piece.lines)
            piece = state.piece = None
    if piece is not None:
        piece.lines.append(line)
    elif matters:
        state.silent = 0
        state.piece = Piece(source, number, [line], list(state.context), progress.step)
    else:
        state.context.append(line)


def _is_full(piece: Piece) -> bool:
    return len(piece.lines) >= _LONGEST_PIECE or sum(map(len, piece.lines)) > _WIDEST_PIECE


def _note_step(line: str, progress: Progress) -> None:
    if "/" not in line and "step" not in line and "iter" not in line and "batch" not in line:
        return
    found = _STEP.search(line[-400:])
    if found is not None:
        step = int((found[1] or found[2])[:15])
        progress.step = max(step, progress.step or 0)

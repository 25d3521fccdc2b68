"""A log, cut into the pieces that may hold an error, and the ways to read a piece that was wrapped.

Reads any stream of bytes once, with bounded memory: lines are cleaned of colours, carriage returns,
time stamps and the prefixes of launchers; a line that may matter opens a piece, which takes the lines
around it. Lines of different ranks belong to different pieces.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from bsfind.explain.texts import HEAD, KEYS

_LONGEST_LINE = 4 << 10
_CONTEXT = 40  # lines of a traceback kept from before the line that matters
_FOLLOWING = 8  # lines after it in which its message may go on
_LONGEST_PIECE = 60
_WIDEST_PIECE = 12 << 10  # characters
_ACTIVE = 60  # lines after which an open piece ends, whichever rank wrote them
_MOST_STREAMS = 512
_RECENT = 200  # lines kept as they are, from before a line that matters: of all ranks together

_KEYS = tuple(key.encode() for key in KEYS)
_QUOTED = re.compile(rb"[\"'].{0,2000}(?<!\\)\\n", re.DOTALL)
_ESCAPES = re.compile(
    r"(?:\x1b|\\x1b|\\033|\\u001b|\^\[)\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_DIRTY = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\\^│┃║|>*#/]|^E   |\.py:\d+\s*$")
_QUOTED_CHARACTER = re.compile(r"\\([_*<>`\"])")
"""Characters as Markdown and quoted texts write them."""

_FRAME = re.compile(
    r"^\s*(?:(?:[│┃║|>*]|#+|//)\s)+\s*(?=\S)|^E {3,}|\s*[│┃║]\s*$|\s{3,}\S+\.py:\d+\s*$"
)
"""Borders and columns of rich's tracebacks and logs, marks of quotations and comments, pytest's `E`."""

_TIME = r"\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?"
_DATE = r"(?:\d{4}[-/]\d{2}[-/]\d{2}|\d{2}-\d{2})"
_BEGINS_WITH_PREFIX = re.compile(
    r"\s*[\[(\d]|\s*(?:rank|ERROR|INFO|WARNING|CRITICAL)", re.IGNORECASE
)
_PREFIXES = (
    re.compile(rf"\[?{_DATE}[T _]{_TIME}(?:Z|[+-]\d\d:?\d\d)?\]?[ \t]*[|:]?[ \t]*"),
    re.compile(rf"\[?{_TIME}\]?[ \t]*[|:]?[ \t]+"),
    re.compile(r"(?:ERROR|INFO|WARNING|CRITICAL)[ \t]*[|:]?[ \t]+(?=\[|\d|\()"),
    re.compile(r"\[\w+\.py:\d+\][ \t]*"),
)
_RANKS = (
    re.compile(
        r"\[(?:rank|default|worker|local_rank|r)[ _:=]?(?P<rank>\d{1,6})\]:?[ \t]?", re.IGNORECASE
    ),
    re.compile(r"\[\d+,(?P<rank>\d{1,6})\]<std(?:err|out)>:?[ \t]?"),
    re.compile(r"rank[ _:=]?(?P<rank>\d{1,6})[ \t]?[:|\]][ \t]?", re.IGNORECASE),
    re.compile(r"(?P<rank>\d{1,6}):[ \t]+(?=\S)"),
    re.compile(
        r"\((?P<name>[A-Za-z][\w.]*?(?:TP(?P<rank>\d+))?)[ ,]+(?:pid|ip)=[\w.:, =]{1,60}\)[ \t]*"
    ),
    re.compile(r"\((?P<name>EngineCore\w*|APIServer\w*|Worker\w*)\)[ \t]*"),
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
class LogPosition:
    """How far a log was read.

    Attributes:
        step: the highest step or iteration that the log named.
        lines: lines read.
    """

    step: int | None = None
    lines: int = 0


@dataclass
class Piece:
    """Lines that belong together, around one that may hold an error.

    Attributes:
        source: who wrote them.
        line: number of the first, from 1.
        lines: as they stand in the log, without prefixes.
        context: lines before the first.
        step: the highest step that the log had named by then.
    """

    source: Source
    line: int
    lines: list[str]
    context: list[str] = field(default_factory=list)
    step: int | None = None

    @property
    def text(self) -> str:
        """The lines."""
        return "\n".join(self.lines)


@dataclass
class _Stream:
    context: deque[str] = field(default_factory=lambda: deque(maxlen=_CONTEXT))
    piece: Piece | None = None
    silent: int = 0


def clean(line: str) -> tuple[Source | None, str]:
    """Take colours, time stamps and the launcher's prefix off a line; None if it names no source."""
    line = line.rstrip()
    if _DIRTY.search(line) is not None:
        line = _ESCAPES.sub("", line)
        line = _CONTROL.sub("", line.replace("^M", "\r").rsplit("\r", 1)[-1]).rstrip()
        line = _QUOTED_CHARACTER.sub(r"\1", _FRAME.sub("", line))
    if _BEGINS_WITH_PREFIX.match(line) is None:
        return None, line
    source: Source | None = None
    at = 0
    for _ in range(6):
        indent = len(line) - len(line[at:].lstrip(" \t"))
        patterns = (*_RANKS, *_PREFIXES) if source is None else _PREFIXES
        found = next(filter(None, (pattern.match(line, indent) for pattern in patterns)), None)
        if found is None:
            break
        at = found.end()
        if found.re in _RANKS:
            rank = found["rank"] if "rank" in found.re.groupindex else None
            name = found["name"] if "name" in found.re.groupindex else None
            source = Source(int(rank) if rank else None, name)
    # A text in a frame, or quoted, may have been given its prefix later.
    return source, _FRAME.sub("", line[at:]) if at else line


def pieces(stream: BinaryIO, position: LogPosition) -> Iterator[Piece]:
    """Read a log and yield its pieces, in the order in which they end.

    Args:
        stream: the log, as bytes; what is not UTF-8 is replaced.
        position: brought up to date while the log is read.
    """
    streams: dict[Source, _Stream] = {}
    recent: deque[bytes] = deque(maxlen=_RECENT)
    last = Source()
    before = last, ""
    active = 0  # lines for which pieces may still be open
    for raw in _lines(stream, position):
        lowered = raw.lower()
        matters = any(
            map(lowered.__contains__, _KEYS)
        )  # runs for every line of a log: no generator
        if not matters and active == 0:
            recent.append(raw)  # most lines of a log end here
            continue
        active = _ACTIVE if matters else active - 1
        recent.append(raw)
        while recent:
            number = position.lines - len(recent) + 1
            is_last = len(recent) == 1
            source, line = _attribute(recent.popleft(), last, streams)
            last = source
            _note_step(line, position)
            if is_last and source not in streams and len(streams) >= _MOST_STREAMS:
                dropped = streams.pop(next(iter(streams)))
                if dropped.piece is not None:
                    yield dropped.piece
            state = streams.setdefault(source, _Stream())
            if is_last and source == Source() != before[0]:
                state.context.append(before[1])  # a line may go on without its prefix
            before = source, line
            yield from _take(state, source, line, number, position, matters and is_last)
        if active == 0:
            yield from _close(streams)
    yield from _close(streams)


def _lines(stream: BinaryIO, position: LogPosition) -> Iterator[bytes]:
    """Read line after line; a message that was written as JSON or a literal has its own lines within."""
    while raw := stream.readline(_LONGEST_LINE):
        position.lines += 1
        if b"\\n" in raw and _QUOTED.search(raw):
            yield from re.split(rb"(?:\\r)?\\n", raw)
        else:
            yield raw


def _attribute(raw: bytes, last: Source, streams: dict[Source, _Stream]) -> tuple[Source, str]:
    source, line = clean(raw.decode("utf-8", errors="replace"))
    if source is None:
        # A wrapped line has lost the prefix of the line that it continues.
        is_open = last in streams and streams[last].piece is not None
        source = last if is_open and line.strip() else Source()
    return source, line


def _close(streams: dict[Source, _Stream]) -> Iterator[Piece]:
    for state in streams.values():
        if state.piece is not None:
            yield state.piece
            state.context.extend(state.piece.lines)
            state.piece = None


def _take(
    state: _Stream, source: Source, line: str, number: int, position: LogPosition, matters: bool
) -> Iterator[Piece]:
    piece = state.piece
    if piece is not None:
        again = matters and HEAD.search(line) and HEAD.search(piece.text)
        state.silent = 0 if matters else state.silent + 1
        is_full = len(piece.lines) >= _LONGEST_PIECE or sum(map(len, piece.lines)) > _WIDEST_PIECE
        if again or state.silent > _FOLLOWING or is_full:
            yield piece
            state.context.extend(piece.lines)
            piece = state.piece = None
    if piece is not None:
        piece.lines.append(line)
    elif matters:
        state.silent = 0
        state.piece = Piece(source, number, [line], list(state.context), position.step)
    else:
        state.context.append(line)


def _note_step(line: str, position: LogPosition) -> None:
    if not any(word in line for word in ("/", "step", "iter", "batch")):
        return
    found = _STEP.search(line[-400:])
    if found is not None:
        step = int((found[1] or found[2])[:15])
        position.step = max(step, position.step or 0)


# ------------------------------------------------------------------------------- wrapped lines

# A terminal cuts a line wherever its width ends, a formatter breaks it between words, and a collector
# of logs may have put its own prefix in front of every part. The log does not say which: the ways of
# reading are tried, and the one in which most of a message makes sense is taken.

_NARROWEST = 40
"""The least width at which lines of one length are taken for cut ones."""

_SHORTEST_PREFIX = 6
_TOKENS = re.compile(r"\d+|\D")
_PREFIX_END = re.compile(r".*[ \t|:]", re.DOTALL)
_WORDS = re.compile(
    r"\b(?:allocate|allocated|allocation|already|backend|bytes|cached|capacity|cuda|error|failed|free|gib"
    r"|fragmentation|gpu|has|including|is|limit|memory|mib|of|out|pool|private|process|pytorch|reserved"
    r"|runtimeerror|size|the|this|total|tried|trying|unallocated|unable|use|which|with)\b",
    re.IGNORECASE,
)
"""Words of these messages: a reading that tears one apart, or joins two, has fewer of them."""


def join(lines: Sequence[str]) -> str:
    """Join wrapped lines: with nothing between them where all are cut at the same width.

    A line that is one shorter had a space at the cut, which logs lose.
    """
    width = max((len(line) for line in lines), default=0)
    full = sum(len(line) >= width - 1 for line in lines)
    cut = width >= _NARROWEST and full >= 2
    parts = [line if cut and len(line) == width else line.strip() + " " for line in lines]
    return _one_space("".join(parts))


def readings(lines: Sequence[str], before: Sequence[str] = ()) -> list[str]:
    """Return the ways to read lines as one text, from likely to unlikely; none twice.

    Args:
        lines: of one message, or more.
        before: what stands in front of them, in which the message may have begun.
    """
    return list(
        dict.fromkeys(
            text
            for some in (without_prefix(lines, before), lines, [*before, *lines])
            for text in (join(some), _one_space(" ".join(some)), _one_space("".join(some)))
        )
    )


def words_known(text: str) -> int:
    """Count the words that belong to messages about memory."""
    return len(_WORDS.findall(text))


def without_prefix(lines: Sequence[str], before: Sequence[str] = ()) -> Sequence[str]:
    """Take off what all lines begin with, digits apart: `Nov 25 14:05:14 node01 python[42]: `.

    A line that is alone is compared with those before it.
    """
    if len(lines) < 2:
        return without_prefix([*before, *lines])[len(before) :] if before else lines
    tokens = [_TOKENS.findall(line[:200]) for line in lines]
    common = 0
    for column in zip(*tokens, strict=False):
        if len({"0" if token.isdigit() else token for token in column}) > 1:
            break
        common += 1
    # Up to a separator: the messages themselves may begin alike.
    lengths = [len("".join(parts[:common])) for parts in tokens]
    ends = [_PREFIX_END.match(line[:n]) for line, n in zip(lines, lengths, strict=True)]
    if min(lengths) < _SHORTEST_PREFIX or not all(ends):
        return lines
    return [line[end.end() :] for line, end in zip(lines, ends, strict=True) if end is not None]


def _one_space(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()

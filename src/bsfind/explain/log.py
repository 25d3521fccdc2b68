"""A log, cut into the pieces that may hold an error, and the ways to read a piece that was wrapped.

Reads a text once, with bounded memory: lines are cleaned of colours, carriage returns, time stamps and
the prefixes of launchers; a line that may matter opens a piece, which takes the lines around it. Lines
of different ranks belong to different pieces.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from bsfind.explain.texts import HEAD, KEYS

_LONGEST_LINE = 4 << 10
_CONTEXT = 40  # lines of a traceback kept from before the line that matters
_WIDEST_CONTEXT = 1000  # characters of each
_FOLLOWING = 8  # lines after it in which its message may go on
_LONGEST_PIECE = 60
_WIDEST_PIECE = 12 << 10  # characters
_ACTIVE = 60  # lines after which an open piece ends, whichever rank wrote them
_MOST_STREAMS = 512
_RECENT = 200  # lines kept as they are, from before a line that matters: of all ranks together
_MOST_SHAPES = 20_000

_NUMBERS = {ord(character): None for character in "0123456789"}
_KEPT_APART = re.compile(
    r"out.?of.?(?:\w+.)?mem|\boom|\bkill|(?<![\d.,:/\[])-?(?:137|1455|14|12|9|8|2)(?![\d.,:/])",
    re.IGNORECASE,
)
"""What makes a line with an error of one without: names of errors, codes, signals."""

_LITERAL = re.compile(r"[^\"']*[\"'].*(?<!\\)\\n", re.DOTALL)
_LITERAL_BREAK = re.compile(r"(?:\\r)?\\n")
_ESCAPES = re.compile(
    r"(?:\x1b|\\x1b|\\033|\\u001b|\^\[)\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*\x07|\x1b[()][A-Z0-9]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_DIRTY = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\\^│┃║|>*#/]|^E   |\.py:\d+\s*$")
_QUOTED_CHARACTER = re.compile(r"\\([_*<>`\"])")
"""Characters as Markdown and quoted texts write them."""

_FRAME = re.compile(
    r"^\s*(?:(?:[│┃║|>*]|#+|//)\s)+\s*(?=\S)|^E {3,}|(?<!\s)\s*[│┃║]\s*$|(?<!\s)\s{3,}\S+\.py:\d+\s*$"
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
class Piece:
    """Lines that belong together, around one that may hold an error.

    Attributes:
        source: who wrote them.
        line: number of the first, from 1.
        step: the highest step that the log had named by then.
        context: lines before the first.
        lines: as they stand in the log, without prefixes.
        width: characters in all lines.
        has_head: whether a message of an allocator begins in them.
        shapes: of the lines that matter, what is left without numbers, hashed.
    """

    source: Source
    line: int
    step: int | None
    context: list[str]
    lines: list[str] = field(default_factory=list)
    width: int = 0
    has_head: bool = False
    shapes: list[int] = field(default_factory=list)


@dataclass
class _Stream:
    """The lines of one source: the piece that is open, or those before the next one."""

    context: deque[str] = field(default_factory=lambda: deque(maxlen=_CONTEXT))
    piece: Piece | None = None
    silent: int = 0

    def is_at_end(self, *, is_head: bool) -> bool:
        """Tell whether the open piece ends before a line, which may be the head of a message."""
        piece = self.piece
        return piece is not None and (
            (is_head and piece.has_head)
            or self.silent > _FOLLOWING
            or len(piece.lines) >= _LONGEST_PIECE
            or piece.width > _WIDEST_PIECE
        )

    def close(self) -> Iterator[Piece]:
        """End the open piece, if there is one, and yield it."""
        if self.piece is not None:
            self.context.extend(line[:_WIDEST_CONTEXT] for line in self.piece.lines)
            yield self.piece
            self.piece = None


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


class Log:
    """A log that is read once.

    Attributes:
        lines: lines read so far.
        step: the highest step or iteration that they named.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        self.lines = 0
        self.step: int | None = None
        self._parts = parts
        self._streams: dict[Source, _Stream] = {}
        self._harmless: set[int] = set()

    def pieces(self) -> Iterator[Piece]:
        """Read the log and yield its pieces, in the order in which they end."""
        recent: deque[tuple[int, str]] = deque(maxlen=_RECENT)
        last, before = Source(), ""
        active = 0  # lines for which pieces may still be open
        for number, raw, has_key in self._numbered_lines():
            recent.append((number, raw))
            shape = _shape(raw) if has_key else 0
            opens = has_key and shape not in self._harmless
            if not opens and active == 0:
                continue  # most lines of a log end here
            active = _ACTIVE if opens else active - 1
            while recent:
                at, text = recent.popleft()
                matters = opens and not recent
                source, line = self._attribute(text, last)
                self._note_step(line)
                if (
                    not recent
                    and source not in self._streams
                    and len(self._streams) >= _MOST_STREAMS
                ):
                    yield from self._streams.pop(next(iter(self._streams))).close()
                state = self._streams.setdefault(source, _Stream())
                if not recent and source == Source() != last:
                    state.context.append(before)  # a line may go on without its prefix
                last, before = source, line[:_WIDEST_CONTEXT]
                is_head = matters and HEAD.search(line) is not None
                state.silent = 0 if matters else state.silent + 1
                if state.is_at_end(is_head=is_head):
                    yield from state.close()
                if matters and state.piece is None:
                    state.piece = Piece(source, at, self.step, list(state.context))
                if state.piece is None:
                    state.context.append(before)
                    continue
                state.piece.lines.append(line)
                state.piece.width += len(line)
                state.piece.has_head = state.piece.has_head or is_head
                if matters:
                    state.piece.shapes.append(shape)
            if active == 0:
                for state in self._streams.values():
                    yield from state.close()
        for state in self._streams.values():
            yield from state.close()

    def dismiss(self, piece: Piece) -> None:
        """Pass over lines that differ only in numbers from those of a piece without an error."""
        if len(self._harmless) > _MOST_SHAPES:
            self._harmless.clear()
        self._harmless.update(piece.shapes)

    def _numbered_lines(self) -> Iterator[tuple[int, str, bool]]:
        """Yield each line with its number and whether it has a key.

        Long lines come in parts. A message that was written as JSON or as a literal has lines of its own
        within; of a line with carriage returns, those parts count that were not overwritten, or have a key.
        """
        rest = ""
        for part in self._parts:
            text = rest + part
            lowered = text.lower()
            keys = [key for key in KEYS if key in lowered]  # most logs have few of them
            *lines, rest = text.split("\n")
            for line in lines:
                self.lines += 1
                yield from _within(line, self.lines, keys)
            if len(rest) > _LONGEST_LINE:
                end = rest.rfind("\r") + 1 or len(rest) // _LONGEST_LINE * _LONGEST_LINE
                yield from _within(rest[:end], self.lines + 1, keys)
                rest = rest[end:]
        if rest:
            self.lines += 1
            yield from _within(rest, self.lines, KEYS)

    def _attribute(self, raw: str, last: Source) -> tuple[Source, str]:
        source, line = clean(raw)
        if source is None:
            # A wrapped line has lost the prefix of the line that it continues.
            is_open = last in self._streams and self._streams[last].piece is not None
            source = last if is_open and line.strip() else Source()
        return source, line

    def _note_step(self, line: str) -> None:
        if not any(word in line for word in ("/", "step", "iter", "batch")):
            return
        found = _STEP.search(line[-400:])
        if found is not None:
            step = int((found[1] or found[2])[:15])
            self.step = max(step, self.step or 0)


def _within(line: str, number: int, keys: Sequence[str]) -> Iterator[tuple[int, str, bool]]:
    """Yield the lines within a line."""
    if len(line) <= _LONGEST_LINE and "\r" not in line and "\\n" not in line:
        lowered = line.lower() if keys else ""
        yield number, line, any(map(lowered.__contains__, keys))
        return
    written = line.rstrip("\r").split("\r")
    for place, overwritten in enumerate(written, start=1 - len(written)):
        for start in range(0, len(overwritten) or 1, _LONGEST_LINE):
            part = overwritten[start : start + _LONGEST_LINE]
            for text in _LITERAL_BREAK.split(part) if _LITERAL.match(part) else (part,):
                lowered = text.lower()
                has_key = any(map(lowered.__contains__, keys))
                if has_key or not place:
                    yield number, text, has_key


def _shape(line: str) -> int:
    return hash(line if _KEPT_APART.search(line) else line.translate(_NUMBERS))


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
            for some in (without_prefix(lines, before), [*before, *lines])
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

"""Messages that were wrapped on their way into a log, put together again.

A terminal cuts a line wherever its width ends, a formatter breaks it between words, and a collector of
logs may have put its own prefix in front of every part. The log does not say which: the ways of reading
are tried, and the one in which most of a message makes sense is taken (see `explanation`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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


def readings(lines: Sequence[str], before: Sequence[str] = ()) -> Iterator[str]:
    """Yield the ways to read lines as one text, from likely to unlikely; none twice.

    Args:
        lines: of one message, or more.
        before: what stands in front of them, in which the message may have begun.
    """
    seen: set[str] = set()
    for some in (without_prefix(lines, before), lines, [*before, *lines]):
        for text in (join(some), _one_space(" ".join(some)), _one_space("".join(some))):
            if text not in seen:
                seen.add(text)
                yield text


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

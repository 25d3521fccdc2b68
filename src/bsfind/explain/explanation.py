"""From a log to its explanation: find the errors, tell their cause, choose the most telling one."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO

from bsfind.explain.account import Account, make_account
from bsfind.explain.advice import Advice, advise
from bsfind.explain.cause import Cause, CauseKind, find_cause
from bsfind.explain.figures import Figures, read_figures
from bsfind.explain.log import Piece, Progress, Source, pieces
from bsfind.explain.lookalikes import LOOKALIKES, Lookalike, find_lookalike
from bsfind.explain.texts import HEAD, KEYS, VAGUE_KEYS, Kind, Match, Strength, is_fault, match_text
from bsfind.explain.wrapping import join, readings, without_prefix, words_known

_MOST_ERRORS = 64
_MOST_PIECES = 2000
"""Of different texts: after that, only what begins like an allocator's message is read."""
_LONGEST_MESSAGE = 4000
_HOST_KINDS = (Kind.CPU_OOM, Kind.HOST_OOM_KILL)
_BEFORE = 2
"""Lines before the first that matters, in which a wrapped message may begin."""
_LIKELY = 2
"""Readings of which one is right, unless lines were lost or mixed."""
_TELLING = re.compile(
    r"out_?of_?[mrd]|oom|kill|(fail\w*|unable|cannot|can't|notenough|tried|trying)(to)?(alloc|mem|find)"
    r"|alloc\w*failed|_status_|assert|illegal|exhausted|memoryerror|bad_alloc|memorynot|availablememory|notpossible",
    re.IGNORECASE,
)
"""What a message of interest holds, however it was cut, all spaces taken out."""
_TROUBLE = re.compile(
    r"fail|error|exception|warn|abort|crash|terminat|insuff|enough|exceed|requir|limit|avail|greater|reject"
    r"|lowon|lowmem|pressure|short|invalid|out.?of|tried|trying|bad_|already|capac|reservedby|allocatedby"
    r"|mpsall",
    re.IGNORECASE,
)
"""What a report of memory in use lacks, all spaces taken out."""
_TELLING_KEYS = tuple(key for key in KEYS if key not in VAGUE_KEYS)


@dataclass(frozen=True, kw_only=True)
class Error:
    """One out-of-memory error of a log.

    Attributes:
        kind: what ran out.
        line: where its text begins in the log, from 1.
        source: who wrote it.
        message: the text, as one line.
        figures: its sizes.
        account: what they add up to.
        cause: the likely cause.
        advice: what to do, in order.
        matched: the source of the text that was recognised.
        proven: False for a text that stands for lack of memory only most likely.
        occurrences: how often the log repeats it.
    """

    kind: Kind
    line: int
    source: Source
    message: str
    figures: Figures
    account: Account
    cause: Cause
    advice: tuple[Advice, ...]
    matched: str
    proven: bool = True
    occurrences: int = 1


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a log says.

    Attributes:
        errors: one per rank or process and distinct text, the most telling first.
        cause: that of the first error; or why there is none.
        advice: the same.
        lines: how long the log is.
    """

    errors: tuple[Error, ...]
    cause: Cause
    advice: tuple[Advice, ...]
    lines: int

    @property
    def kind(self) -> Kind:
        """What ran out of memory; `not_oom` for nothing."""
        return self.errors[0].kind if self.errors else Kind.NOT_OOM

    @property
    def figures(self) -> Figures:
        """The sizes of the most telling error."""
        return self.errors[0].figures if self.errors else Figures()


@dataclass
class _Found:
    match: Match
    piece: Piece
    message: str
    figures: Figures
    count: int = 1


def explain_text(text: str) -> Explanation:
    """Explain a log that is in memory."""
    return explain(io.BytesIO(text.encode("utf-8", errors="replace")))


def explain(stream: BinaryIO) -> Explanation:
    """Read a log and explain the out-of-memory errors in it.

    Args:
        stream: the log; read once, with bounded memory.
    """
    progress = Progress()
    found: dict[tuple[object, ...], _Found] = {}
    lookalikes: dict[Lookalike, int] = {}
    fault = False
    seen: dict[str, _Found | None] = {}
    for piece in pieces(stream, progress):
        # Logs repeat themselves: what has been read once is counted, not read again.
        text = f"{piece.source}\n{piece.text}"
        if text in seen:
            again = seen[text]
            if again is not None:
                again.count += 1
            continue
        if len(seen) < _MOST_PIECES:
            seen[text] = None
        elif HEAD.search(piece.text) is None:
            continue
        if _is_report(piece):
            continue
        likely = _readings(piece)[:_LIKELY]
        fault = fault or any(map(is_fault, likely))
        lookalike = next(filter(None, map(find_lookalike, likely)), None)
        if lookalike is not None:
            lookalikes.setdefault(lookalike, piece.line)
        one = _read(piece)
        if one is None:
            continue
        key = (piece.source, one.match.kind, one.figures)
        if key in found:
            found[key].count += 1
            if text in seen:
                seen[text] = found[key]
        elif len(found) < _MOST_ERRORS:
            found[key] = one
            if text in seen:
                seen[text] = one
    kept = _decide(list(found.values()), fault=fault)
    errors = tuple(_error(one) for one in kept)
    if errors:
        return Explanation(
            errors=errors, cause=errors[0].cause, advice=errors[0].advice, lines=progress.lines
        )
    cause, advice = _no_error(lookalikes)
    return Explanation(errors=(), cause=cause, advice=advice, lines=progress.lines)


def _is_report(piece: Piece) -> bool:
    """Tell a report of memory in use, which many programs print at every step, from an error."""
    text = "\n".join((*piece.context[-_BEFORE:], *piece.lines)).lower()
    if any(map(text.__contains__, _TELLING_KEYS)):
        return False
    return _TROUBLE.search("".join(text.split())) is None


def _readings(piece: Piece) -> list[str]:
    """Return the ways to read a piece; one is enough where no message that matters was wrapped."""
    before = piece.context[-_BEFORE:]
    bare = without_prefix(piece.lines, before)
    squeezed = "".join("".join((*before, *piece.lines, *bare)).split())
    if _TELLING.search(squeezed) is None:
        return [join(piece.lines)]
    return list(readings(piece.lines, before))


def _read(piece: Piece) -> _Found | None:
    """Return the error that a piece of the log tells of; None if it tells of none.

    Of the ways to read its lines, the first that is an error says which, and the one that yields most
    figures, of which most words are whole, says how much.
    """
    texts = _readings(piece)
    lines = "\n".join(without_prefix(piece.lines, piece.context[-_BEFORE:]))
    match = None
    for number, text in enumerate(texts):
        match = match_text(text, lines)
        # A hint needs the text as it most likely was; a proof is one in any reading.
        if match is not None and (match.strength > Strength.HINT or number < _LIKELY):
            break
        match = None
    if match is None:
        return None
    figures, message = max(
        ((_figures(text), text) for text in texts),
        key=lambda read: (read[0].known, words_known(read[1])),
    )
    if match.kind in _HOST_KINDS:  # a GPU that is named near it has no part in it
        figures = replace(figures, gpu_index=None)
    return _Found(match, piece, message[:_LONGEST_MESSAGE], figures)


def _figures(text: str) -> Figures:
    # The figures are those of one message: what stands before it, or the next one, may name other sizes.
    starts = [head.start() for head in HEAD.finditer(text)]
    messages = [text[start:end] for start, end in pairwise((*starts, len(text)))]
    figures = max(map(read_figures, messages), key=lambda read: read.known, default=Figures())
    return figures if figures.known else read_figures(text)


def _decide(found: list[_Found], *, fault: bool) -> list[_Found]:
    """Keep what counts: hints and libraries' errors give way to faults, hints to anything else."""
    if fault:
        found = [one for one in found if one.match.strength is Strength.PROOF]
    strongest = max((one.match.strength for one in found), default=Strength.HINT)
    if strongest > Strength.HINT:
        found = [one for one in found if one.match.strength > Strength.HINT]
    # An error that is raised again loses its figures on the way: the first text has them.
    telling = {one.piece.source for one in found if one.figures.known}
    found = [
        one
        for one in found
        if one.figures.known or not (one.piece.source in telling or Source() in telling)
    ]
    return sorted(
        found,
        key=lambda one: (-one.match.strength, one.figures.tried_bytes is None, one.piece.line),
    )


def _error(one: _Found) -> Error:
    figures = one.figures
    if one.match.kind in _HOST_KINDS:
        account = Account(tried_bytes=figures.tried_bytes)
    else:
        account = make_account(figures)
    proven = one.match.strength > Strength.HINT
    context = "\n".join((*one.piece.context, *one.piece.lines))
    cause = find_cause(
        one.match.kind,
        figures,
        account,
        message=one.message,
        proven=proven,
        context=_frames(context),
        step=one.piece.step,
    )
    return Error(
        kind=one.match.kind,
        line=one.piece.line,
        source=one.piece.source,
        message=one.message,
        figures=figures,
        account=account,
        cause=cause,
        advice=advise(one.match.kind, cause, figures, account, one.message),
        matched=one.match.source,
        proven=proven,
        occurrences=one.count,
    )


def _frames(context: str) -> str:
    """Return the part of the log that is the last traceback."""
    start = context.rfind("Traceback (most recent call last)")
    return context[start:] if start >= 0 else ""


def _no_error(lookalikes: dict[Lookalike, int]) -> tuple[Cause, tuple[Advice, ...]]:
    if lookalikes:
        best = min(lookalikes, key=LOOKALIKES.index)
        reason = f"{best.meaning} (line {lookalikes[best]:,})"
        return Cause(CauseKind.NOT_MEMORY, True, reason), (
            Advice(best.remedy, best.command or None),
        )
    return (
        Cause(
            CauseKind.NOT_MEMORY, False, "The log holds no error about memory that bsfind knows."
        ),
        (),
    )

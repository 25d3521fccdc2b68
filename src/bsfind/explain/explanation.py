"""From a log to its explanation: find the errors, their causes and advice, and the most telling error."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, BinaryIO

from bsfind.errors import UsageError
from bsfind.explain.advice import Advice, advise
from bsfind.explain.breakdown import Breakdown, Figures, make_breakdown, read_figures
from bsfind.explain.cause import Cause, CauseKind, find_cause
from bsfind.explain.decoding import text_parts
from bsfind.explain.log import (
    Log,
    Piece,
    Source,
    join,
    readings,
    without_prefix,
    words_known,
)
from bsfind.explain.other_errors import OTHER_ERRORS, OtherError, find_other_error, is_fault
from bsfind.explain.texts import HEAD, Kind, Match, Strength, match_text, may_hold_error

SCHEMA_VERSION = "1.0"

_MOST_ERRORS = 64
_MOST_SEEN = 10_000
_MOST_WORK = 1_200_000
"""Characters that are searched for errors, in all readings of all pieces that differ: about a second. After
that, as many again in pieces that are likely errors, and then in allocators' messages with sizes."""
_WORK_OF_A_PIECE = 300
_LONGEST_MESSAGE = 4000
_HOST_KINDS = (Kind.CPU_OOM, Kind.HOST_OOM_KILL)
_BEFORE = 2
"""Lines before the first that matters, in which a wrapped message may begin."""
_LIKELY = 2
"""Readings of which one is right, unless lines were lost or mixed."""


_URGENT = re.compile(r"out.?of.?memory|oom.?kill|MemoryError|bad_alloc|ALLOC_FAILED", re.IGNORECASE)
_SIZE = re.compile(r"\d ?[KMGT]i?B\b|\d bytes")


@dataclass(frozen=True, kw_only=True)
class Error:
    """One out-of-memory error of a log.

    Attributes:
        kind: what ran out.
        line: number of the line in which its text begins, from 1.
        source: who wrote it.
        message: the text, as one line.
        figures: its sizes.
        breakdown: who held the memory, as far as the sizes say.
        cause: the likely cause.
        advice: what to do, in order.
        proven: False for a text that stands for lack of memory only most likely.
        occurrences: how often the log repeats it.
    """

    kind: Kind
    line: int
    source: Source
    message: str
    figures: Figures
    breakdown: Breakdown
    cause: Cause
    advice: tuple[Advice, ...]
    proven: bool = True
    occurrences: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the error as part of the JSON document."""
        breakdown = asdict(self.breakdown)
        return {
            "rank": self.source.rank,
            "source": self.source.name,
            "line": self.line,
            "occurrences": self.occurrences,
            "kind": self.kind.value,
            **_figures_to_json(self.figures),
            "account": {
                name: breakdown[name] for name in sorted(breakdown) if name.endswith("_bytes")
            },
            **_verdict_to_json(self.cause, self.advice),
            "message": self.message,
        }


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a log says.

    Attributes:
        errors: one per rank or process and distinct text, the most telling first.
        cause: that of the first error; or why there is none.
        advice: the same.
        lines: how long the log is.
        notes: what of the log was not read, and why.
    """

    errors: tuple[Error, ...]
    cause: Cause
    advice: tuple[Advice, ...]
    lines: int
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What ran out of memory; `not_oom` for nothing."""
        return self.errors[0].kind if self.errors else Kind.NOT_OOM

    @property
    def figures(self) -> Figures:
        """The sizes of the most telling error."""
        return self.errors[0].figures if self.errors else Figures()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document: the most telling error at the top, every one under `errors`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind.value,
            **_figures_to_json(self.figures),
            **_verdict_to_json(self.cause, self.advice),
            "errors": [error.to_json() for error in self.errors],
            "lines": self.lines,
            "notes": list(self.notes),
        }


def _figures_to_json(figures: Figures) -> dict[str, Any]:
    known = asdict(figures)
    del known["precision"]
    return {**known, "processes": list(known["processes"])}


def _verdict_to_json(cause: Cause, advice: tuple[Advice, ...]) -> dict[str, Any]:
    return {
        "cause": cause.kind.value,
        "cause_is_likely": cause.likely,
        "cause_reason": cause.reason,
        "advice": [asdict(remedy) for remedy in advice],
    }


@dataclass
class _Found:
    match: Match
    piece: Piece
    message: str
    figures: Figures
    count: int = 1


def explain(stream: BinaryIO) -> Explanation:
    """Read a log and explain the out-of-memory errors in it.

    Args:
        stream: the log; read once, with bounded memory.

    Raises:
        UsageError: it is compressed in a way that cannot be read, damaged before any error, or no text.
    """
    notes: list[str] = []
    log = Log(text_parts(stream, notes))
    found: dict[tuple[object, ...], _Found] = {}
    other_errors: dict[OtherError, int] = {}
    has_fault, work = False, 0
    skipped: list[int] = []
    seen: dict[int, _Found | None] = {}
    for piece in log.pieces():
        # Logs repeat themselves: what has been read once is counted, not read again.
        text = hash((piece.source, *piece.lines))
        if text in seen:
            again = seen[text]
            if again is not None:
                again.count += 1
            continue
        if len(seen) < _MOST_SEEN:
            seen[text] = None
        if not _may_hold_error(piece):
            log.dismiss(piece)
            continue
        if work > _MOST_WORK * _urgency(piece):
            skipped.append(piece.line)
            continue
        texts = readings(piece.lines, piece.context[-_BEFORE:])
        work += sum(map(len, texts)) + _WORK_OF_A_PIECE
        has_fault = has_fault or any(map(is_fault, texts[:_LIKELY]))
        other = next(filter(None, map(find_other_error, texts[:_LIKELY])), None)
        if other is not None:
            other_errors.setdefault(other, piece.line)
        one = _read(piece, texts)
        if one is None:
            log.dismiss(piece)
            continue
        key = (piece.source, one.match.kind, one.figures)
        if key in found:
            one = found[key]
            one.count += 1
        elif len(found) < _MOST_ERRORS:
            found[key] = one
        else:
            continue
        if text in seen:
            seen[text] = one
    errors = tuple(map(_error, _decide(list(found.values()), has_fault=has_fault)))
    if notes and not errors:
        raise UsageError(
            "the log can be read only in part, or not at all",
            detail=f"{notes[0]} What could be read holds no out-of-memory error.",
            hint="give the whole log as text, or decompress what is left of it",
        )
    if skipped:
        notes.append(
            f"{len(skipped):,} parts of the log that may speak of memory were not read, the first in line "
            f"{skipped[0]:,}: there are too many different ones."
        )
    if errors:
        cause, advice = errors[0].cause, errors[0].advice
    else:
        cause, advice = _no_error(other_errors, is_read=not skipped)
    return Explanation(
        errors=errors, cause=cause, advice=advice, lines=log.lines, notes=tuple(notes)
    )


def _may_hold_error(piece: Piece) -> bool:
    before = piece.context[-_BEFORE:]
    whole = (*before, *piece.lines)
    # A prefix may stand between the parts of a word.
    without = without_prefix(piece.lines, before)
    return may_hold_error("".join(whole)) or (
        without is not piece.lines and may_hold_error("".join(without))
    )


def _urgency(piece: Piece) -> int:
    text = "\n".join(piece.lines)
    if piece.has_head and _SIZE.search(text):
        return 3
    return 2 if _URGENT.search(text) else 1


def _read(piece: Piece, texts: list[str]) -> _Found | None:
    """Return the error in a piece of the log; None if there is none.

    Of the ways to read its lines, the first that is an error says which, and the one that yields most
    figures, of which most words are whole, says how much.
    """
    lines = "\n".join(without_prefix(piece.lines, piece.context[-_BEFORE:]))
    # A hint needs the text as it most likely was; a proof is one in any reading.
    likely = {*texts[:_LIKELY], join(piece.lines)}
    matches = (
        (text in likely, match_text(text, "" if at else lines))
        for at, text in enumerate(dict.fromkeys((*texts, join(piece.lines))))
    )
    match = next(
        (m for is_likely, m in matches if m and (is_likely or m.strength > Strength.HINT)), None
    )
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


def _decide(found: list[_Found], *, has_fault: bool) -> list[_Found]:
    """Keep what counts: hints and libraries' errors give way to faults, hints to anything else."""
    if has_fault:
        found = [one for one in found if one.match.strength is Strength.PROOF]
    if any(one.match.strength > Strength.HINT for one in found):
        found = [one for one in found if one.match.strength > Strength.HINT]
    # An error that is raised again loses its figures on the way: the first text has them.
    telling = {one.piece.source for one in found if one.figures.known}
    found = [
        one for one in found if one.figures.known or not telling & {one.piece.source, Source()}
    ]
    return sorted(
        found,
        key=lambda one: (-one.match.strength, one.figures.tried_bytes is None, one.piece.line),
    )


def _error(one: _Found) -> Error:
    kind, figures = one.match.kind, one.figures
    is_host = kind in _HOST_KINDS
    breakdown = Breakdown(tried_bytes=figures.tried_bytes) if is_host else make_breakdown(figures)
    proven = one.match.strength > Strength.HINT
    context = "\n".join((*one.piece.context, *one.piece.lines))
    start = context.rfind("Traceback (most recent call last)")
    cause = find_cause(
        kind,
        figures,
        breakdown,
        message=one.message,
        is_proven=proven,
        traceback=context[start:] if start >= 0 else "",
        step=one.piece.step,
    )
    return Error(
        kind=kind,
        line=one.piece.line,
        source=one.piece.source,
        message=one.message,
        figures=figures,
        breakdown=breakdown,
        cause=cause,
        advice=advise(kind, cause, figures, breakdown, one.message),
        proven=proven,
        occurrences=one.count,
    )


def _no_error(
    other_errors: dict[OtherError, int], *, is_read: bool
) -> tuple[Cause, tuple[Advice, ...]]:
    if not other_errors:
        what = "The log" if is_read else "What was read of the log"
        reason = f"{what} holds no error about memory that bsfind knows."
        return Cause(CauseKind.NOT_MEMORY, False, reason), ()
    best = min(other_errors, key=OTHER_ERRORS.index)
    reason = f"{best.meaning} (line {other_errors[best]:,})"
    return Cause(CauseKind.NOT_MEMORY, True, reason), (Advice(best.remedy, best.command or None),)

"""Reads of unknown values: which answer they get, and where the other answer is right.

Where the user's code raises because of an answer, training would not have given it. The step is then
traced again, with the other answer to the read before the error.
"""

from __future__ import annotations

import linecache
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeVar

import torch

from bsfind.errors import BsfindError, UntraceableError
from bsfind.simulation.trace.value_rules import Range
from bsfind.workload.user_errors import is_raised, is_user_frame

_OURS = str(Path(__file__).resolve().parents[2])
_MODULE = str(Path("torch", "nn", "modules", "module.py"))
_MAX_OTHER_ANSWERS = 16
_MAX_NAMED = 3

_OF_LOSSES = 1.0
"""What programs read of numbers without bounds, of losses and norms: they divide by them."""

_UNBOUNDED = torch.finfo(torch.float16).max
_MAX_READS = 10_000
"""Reads in one place after which it is taken for a loop that only another answer would end."""

_Site = tuple[tuple[CodeType, int], ...]
"""A place in the code: functions and positions in them, up to the call of the module."""

_Result = TypeVar("_Result")
_Value = TypeVar("_Value", bool, int, float)

_BRANCH = re.compile(r"\s*(if|elif|while)\b|.*\bif\b.*\belse\b")


class AssumedReads:
    """Answers reads of unknown values.

    Args:
        note: called with a code and a message for the reader of the result.

    Attributes:
        is_repeatable: whether the code that reads can be run again, with other answers (see `run`).
    """

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note = note
        self.is_repeatable = True
        self._others: set[_Site] = set()
        self._recent: dict[_Site, None] = {}
        self._pending: dict[str, bool | int | float] = {}
        self._checked: dict[str, bool | int | float] = {}
        self._reads: Counter[_Site] = Counter()

    def answer(self, dtype: torch.dtype, known: Range) -> bool | int | float:
        """Return the value that a read gets.

        Args:
            dtype: dtype of the value.
            known: bounds of the value.
        """
        frames = list(_frames())
        site = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        self._reads[site] += 1
        if self._reads[site] > _MAX_READS:
            loop = _EndlessLoopError(site, frames)
            raise loop if self.is_repeatable else _endless(loop)
        value = known.guess
        if not self.is_repeatable and known.likely is None and known.high >= _UNBOUNDED:
            value = max(_OF_LOSSES, known.low) if dtype.is_floating_point else value
        if site in self._others:
            other = 1.0 if value == 0 else 0.0
            value = min(max(other, known.low), known.high)
        self._recent.pop(site, None)
        self._recent[site] = None
        if dtype == torch.bool:
            return self._named_answer(frames, bool(value))
        if not (dtype.is_floating_point or dtype.is_complex):
            return self._named_answer(frames, int(value))
        # Mostly a loss that is printed.
        return self._named_answer(frames, value) if frames and _branches(frames[0]) else value

    def _named_answer(self, frames: list[FrameType], value: _Value) -> _Value:
        """Remember the line that reads, unless it is a library's, or only checks."""
        if not frames or not is_user_frame(frames[0].f_code):
            return value
        place = f"{Path(frames[0].f_code.co_filename).name}:{frames[0].f_lineno}"
        (self._checked if _checks(frames[0]) else self._pending)[place] = value
        return value

    def note_lines(self, *, has_failed: bool = False) -> None:
        """Note the lines that read.

        Args:
            has_failed: whether the code has failed: lines that do nothing but check are noted too.
        """
        if has_failed:
            self._pending |= self._checked
        for place, value in list(self._pending.items())[:_MAX_NAMED]:
            self._note(
                f"value_assumed:{place}",
                f"`{place}` reads a value that depends on data, which a prediction does not have: "
                f"it is taken as {value}",
            )
        if len(self._pending) > _MAX_NAMED:
            self._note("value_assumed", "further lines read values that depend on data")

    def run(self, attempt: Callable[[], _Result]) -> _Result:
        """Run a function that reads values; where it raises or loops, repeat it with other answers.

        Each other answer is tried once.

        Args:
            attempt: function that starts anew each time.

        Raises:
            UntraceableError: a loop ends with neither answer.
            Exception: what the last attempt raised.
        """
        before = set(self._others)
        while True:
            self._recent.clear()
            self._pending.clear()
            self._checked.clear()
            self._reads.clear()
            try:
                result = attempt()
            except _EndlessLoopError as loop:
                if loop.site in self._others:
                    self._others = before
                    raise _endless(loop) from None
                traceback.clear_frames(loop.__traceback__)
                self._others.add(loop.site)
            except Exception as error:
                site = self._responsible(error) if _is_check(error) else None
                if site is None or len(self._others) >= len(before) + _MAX_OTHER_ANSWERS:
                    self._others = before
                    raise
                traceback.clear_frames(error.__traceback__)  # their tensors are those of the trial
                self._others.add(site)
            else:
                self.note_lines()
                return result

    def _responsible(self, error: Exception) -> _Site | None:
        """Return the last read before an error in the same call of a module; None: there is none."""
        raised: set[CodeType] = set()
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            filename = frame.f_code.co_filename
            if filename.endswith(_MODULE) or filename.startswith(_OURS):
                if raised:
                    break
                continue
            raised.add(frame.f_code)
        for site in reversed(self._recent):
            if site not in self._others and any(code in raised for code, _ in site):
                return site
        return None


class _EndlessLoopError(BaseException):
    """A loop of the user's code does not end: not an `Exception`, which the loop may catch."""

    def __init__(self, site: _Site, frames: list[FrameType]) -> None:
        self.site = site
        own = next((frame for frame in frames if is_user_frame(frame.f_code)), frames[0])
        self.place = f"{Path(own.f_code.co_filename).name}:{own.f_lineno}"


def _endless(loop: _EndlessLoopError) -> UntraceableError:
    return UntraceableError(
        f"`{loop.place}` loops until a value has changed, which cannot be predicted",
        hint="`--device cuda` measures instead, on a machine with a GPU",
    )


def _is_check(error: Exception) -> bool:
    """Tell whether Python code raised an error by itself, or computed with the value that it read."""
    if isinstance(error, BsfindError):
        return False
    return isinstance(error, (ArithmeticError, ValueError)) or is_raised(error)


def _frames() -> Iterator[FrameType]:
    """Yield the frames of the code that reads, innermost first, up to the call of its module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.endswith(_MODULE) or filename.startswith(_OURS):
            return
        yield frame
        frame = frame.f_back


def is_checked() -> bool:
    """Tell whether the line that reads now does nothing but raise upon what it reads."""
    frame = next(_frames(), None)
    return frame is not None and _checks(frame)


def _checks(frame: FrameType) -> bool:
    """Tell whether a line does nothing but raise upon what it reads."""
    filename, line = frame.f_code.co_filename, frame.f_lineno
    if linecache.getline(filename, line).lstrip().startswith("assert"):
        return True
    return linecache.getline(filename, line + 1).lstrip().startswith("raise")


def _branches(frame: FrameType) -> bool:
    """Tell whether a line decides what runs next."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return _BRANCH.match(line) is not None

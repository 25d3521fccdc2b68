"""Reads of values that nobody knows: what was answered, and where the other answer is right.

Where the user's code raises upon an answer, training would not have given it. The step is then traced
again, with the other answer to the read before the error.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeVar

import torch

from bsfind.errors import BsfindError
from bsfind.simulation.tracing.value_ranges import Range

__all__ = ["AssumedReads"]

_OURS = str(Path(__file__).resolve().parents[2])
_LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(torch.__file__).parent),
)
_MODULE = str(Path("torch", "nn", "modules", "module.py"))
_MAX_OTHER_ANSWERS = 16
_MAX_NAMED = 3

_Site = tuple[tuple[CodeType, int], ...]
"""A place in the code: functions and positions in them, up to the call of the module."""

_Result = TypeVar("_Result")


class AssumedReads:
    """Answers reads of unknown values.

    Args:
        note: called with a code and a message for the reader of the result.
    """

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note = note
        self._others: set[_Site] = set()
        self._recent: dict[_Site, None] = {}
        self._named: dict[str, bool | int] = {}

    def answer(self, dtype: torch.dtype, known: Range) -> bool | int | float:
        """Return the value that a read gets.

        Args:
            dtype: of the value.
            known: its bounds.
        """
        frames = list(_frames())
        site = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        value = known.guess
        if site in self._others:
            other = 1.0 if value == 0 else 0.0
            value = min(max(other, known.low), known.high)
        self._recent.pop(site, None)
        self._recent[site] = None
        if dtype == torch.bool:
            return self._named_answer(frames, bool(value))
        if dtype.is_floating_point or dtype.is_complex:
            return value
        return self._named_answer(frames, int(value))

    def _named_answer(self, frames: list[FrameType], value: bool | int) -> bool | int:
        """Name the line that reads, unless it is a library's, or only checks."""
        if not frames or frames[0].f_code.co_filename.startswith(_LIBRARIES) or _checks(frames[0]):
            return value
        place = f"`{Path(frames[0].f_code.co_filename).name}:{frames[0].f_lineno}`"
        self._named[place] = value
        places = list(self._named.items())
        listed = ", ".join(f"{where} (taken as {answer})" for where, answer in places[:_MAX_NAMED])
        more = f" and {len(places) - _MAX_NAMED} more" if len(places) > _MAX_NAMED else ""
        self._note(
            "value_assumed",
            "the model reads values that depend on data, which a prediction does not have: "
            f"{listed}{more}",
        )
        return value

    def run(self, attempt: Callable[[], _Result]) -> _Result:
        """Run what reads values; where it raises, again with other answers, each tried once.

        Args:
            attempt: what to run, from its start.

        Raises:
            Exception: of the first attempt, if the others do not succeed.
        """
        before = set(self._others)
        first: Exception | None = None
        for _ in range(_MAX_OTHER_ANSWERS):
            self._recent.clear()
            try:
                return attempt()
            except BsfindError:
                if first is None:
                    raise
                break
            except Exception as error:
                site = self._responsible(error)
                if first is None:
                    if site is None:
                        raise
                    first = error
                if site is None:
                    break
                traceback.clear_frames(error.__traceback__)  # their tensors are those of the trial
                self._others.add(site)
        self._others = before
        assert first is not None
        raise first

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


def _checks(frame: FrameType) -> bool:
    """Tell whether a line does nothing but raise upon what it reads."""
    filename, line = frame.f_code.co_filename, frame.f_lineno
    if linecache.getline(filename, line).lstrip().startswith("assert"):
        return True
    return linecache.getline(filename, line + 1).lstrip().startswith("raise")


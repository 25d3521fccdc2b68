"""Whose exception it is: the user's code's, or bsfind's own.

The frame that raised decides. Frames of torch and of the standard library act for their caller, and
so do bsfind's own functions that only hand the user's call on, or that raise what PyTorch raises on
a GPU: those are marked with `stands_for_torch`.
"""

from __future__ import annotations

import dis
import linecache
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Literal, TypeVar

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_OURS = f"{_PACKAGE}/"
# What the reference step calls is the user's model, loss and optimizer.
_STEP = (f"{_PACKAGE / 'workload'}/", f"{_PACKAGE / 'devices'}/")
_TORCH = f"{Path(torch.__file__).resolve().parent}/"
_LIBRARY = f"{Path(sysconfig.get_path('stdlib')).resolve()}/"
_INSTALLED = ("/site-packages/", "/dist-packages/")

_HANDING_ON: set[CodeType] = set()

_Function = TypeVar("_Function", bound=Callable[..., object])
_Owner = Literal["handed on", "torch", "library", "step", "bsfind", "user"]


def stands_for_torch(function: _Function) -> _Function:
    """Mark a function of bsfind that stands between the user's code and torch.

    An exception that is raised in its frame is the one that the user's code would get from PyTorch.
    Only for functions whose own statements cannot fail otherwise.
    """
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        _HANDING_ON.add(code)
    return function


def _owner(code: CodeType) -> _Owner:
    name = code.co_filename
    if code in _HANDING_ON:
        return "handed on"
    if name.startswith(_OURS):
        return "step" if name.startswith(_STEP) else "bsfind"
    if name.startswith(_TORCH):
        return "torch"
    if name.startswith("<"):
        return "library"
    if name.startswith(_LIBRARY) and not any(part in name for part in _INSTALLED):
        return "library"
    return "user"


def _owners(trace: TracebackType | None) -> list[_Owner]:
    """Return whose each frame of a traceback is, the one that raised first."""
    owners = []
    while trace is not None:
        owners.append(_owner(trace.tb_frame.f_code))
        trace = trace.tb_next
    return owners[::-1]


def is_bsfinds_own(error: BaseException) -> bool:
    """Tell whether an exception is a bug in bsfind rather than a failure of the user's code.

    It is if a frame of bsfind raised it, or made the call in which torch raised it. Where an
    operator that the user's code called was refused by torch, it is the user's, whatever bsfind did
    in between.
    """
    owners = _owners(error.__traceback__)
    if isinstance(error, RecursionError):  # any frame may be the one too many
        return "user" not in owners and "torch" not in owners
    if isinstance(error, MemoryError):  # of the host, which the model fills
        return False
    if is_message_of_torch(error):
        return False
    if owners[:1] == ["handed on"] and isinstance(error, NameError):
        return True
    handed_on = False
    called_torch = is_from_cpp(error)
    for owner in owners:
        if owner == "handed on":
            handed_on = True
        elif owner == "torch":
            called_torch = True
        elif owner == "step":
            return not (handed_on or called_torch)
        elif owner == "bsfind" and not handed_on:
            return True
        elif owner == "user":
            return False
    return False


def is_raised_by_user(error: BaseException) -> bool:
    """Tell whether a frame of the user's code, or of a library's, raised an exception."""
    owners = _owners(error.__traceback__)
    return bool(owners) and owners[0] == "user"


def is_message_of_torch(error: BaseException) -> bool:
    """Tell whether an exception is of a class that torch's Python code has for its own purposes.

    Activation checkpointing ends a recomputation by one, from hooks that run under any operator.
    """
    of_torch = type(error).__module__.startswith("torch.")
    return of_torch and _owners(error.__traceback__)[:1] == ["torch"]


def raising_package(error: BaseException) -> str | None:
    """Return the top-level package whose code raised an exception; None: it was not the user's."""
    name, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        owner = _owner(frame.f_code)
        if owner == "user":
            name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        elif owner not in ("library", "torch"):
            name = None
        trace = trace.tb_next
    return name


def is_said_for_torch(error: BaseException) -> bool:
    """Tell whether a function marked with `stands_for_torch` raised an exception by itself."""
    owners = _owners(error.__traceback__)
    return bool(owners) and owners[0] == "handed on" and is_raised(error)


def is_from_cpp(error: BaseException) -> bool:
    """Tell whether an error came out of torch's C++, which has no frames."""
    return isinstance(error, RuntimeError) and not is_raised(error)


def is_raised(error: BaseException) -> bool:
    """Tell whether a `raise` raised an exception, rather than a call of a function in C."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"


def is_user_frame(code: CodeType) -> bool:
    """Tell whether a frame is the user's own: no library's, nor bsfind's."""
    return _owner(code) == "user" and not any(part in code.co_filename for part in _INSTALLED)


def user_line() -> str | None:
    """Return `file:line` of the innermost of the user's frames that run now; None: there is none."""
    frame = _running_frame(is_user_frame)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else None


def running_code() -> str | None:
    """Return the line of the user's or a library's code that calls torch now; None: there is none.

    As `rpn.py:255 of torchvision: keep = keep[:limit]`; without a library in the user's own files.
    """
    frame = _running_frame(lambda code: _owner(code) == "user")
    if frame is None:
        return None
    name, line = frame.f_code.co_filename, frame.f_lineno
    place = f"{Path(name).name}:{line}"
    if not is_user_frame(frame.f_code):
        place += f" of {str(frame.f_globals.get('__name__', '')).partition('.')[0]}"
    source = linecache.getline(name, line).strip()
    return f"{place}: {source}" if source else place


def _running_frame(is_wanted: Callable[[CodeType], bool]) -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_wanted(frame.f_code):
        frame = frame.f_back
    return frame

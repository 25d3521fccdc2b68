"""Exceptions in a step: whether the user's code or bsfind raised them, and how they are reported.

The frame that raised decides. Frames of torch and of the standard library act for their caller, and
so do functions of bsfind that only pass the user's call on, or that raise what PyTorch raises on a
GPU: these are marked with `stands_for_torch`.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import gc
import linecache
import os
import re
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Literal, TypeVar

import torch

from bsfind.errors import BsfindError, InternalError, TargetError, UntraceableError
from bsfind.failures.exceptions import plain, stands_in
from bsfind.failures.gpu_faults import device_fault
from bsfind.workload.libraries.downloads import how_to_go_without, is_no_network

_PACKAGE = Path(__file__).resolve().parents[1]
_OURS = f"{_PACKAGE}/"
_DEMO = str(_PACKAGE / "demo.py")  # a model as any other
# What the reference step calls is the user's model, loss and optimizer.
_STEP = (f"{_PACKAGE / 'workload'}/", f"{_PACKAGE / 'devices'}/")
_TORCH = f"{Path(torch.__file__).resolve().parent}/"
_LIBRARY = f"{Path(sysconfig.get_path('stdlib')).resolve()}/"
_INSTALLED = ("/site-packages/", "/dist-packages/")

# What the user's code may replace, as it was before that code ran.
_ORIGINALS: dict[Any, dict[str, Any]] = {
    owner: {name: value for name, value in vars(owner).items() if callable(value)}
    for owner in (
        *(builtins, dataclasses, gc, os, threading, time),
        *(torch, torch.cuda, torch.Tensor),
    )
}

_STANDS_FOR_TORCH: set[CodeType] = set()

# Files through which every call of a module or of the import system passes.
_PLUMBING = ("torch/nn/modules/module.py", "<frozen importlib", "importlib/__init__.py")
# What PyTorch's CPU build says where code does not go through `torch.cuda`, which a prediction replaces.
_CUDA_ONLY = re.compile(
    r"module 'torch\._C' has no attribute '(\w+)'|cannot import name '(\w+)' from 'torch\._C'"
    r"|Torch not compiled with CUDA enabled|not linked with support for cuda"
)
# Packages with CUDA kernels that PyTorch does not know, and what they raise without a GPU.
_CUDA_LIBRARIES = frozenset(
    (
        *("apex", "bitsandbytes", "causal_conv1d", "deepspeed", "flash_attn", "mamba_ssm"),
        *("natten", "spconv", "transformer_engine", "triton", "xformers"),
    )
)
_NO_GPU_ERRORS = (AssertionError, AttributeError, ImportError, OSError, RuntimeError)
_HAS_CUDA = torch.version.cuda is not None
_MAX_LINES = 60
_MAX_LINE = 1000
_MAX_MESSAGE = 160

_Function = TypeVar("_Function", bound=Callable[..., object])
_Owner = Literal["marked", "torch", "library", "step", "bsfind", "user"]


def stands_for_torch(function: _Function) -> _Function:
    """Mark a function of bsfind that runs between the user's code and torch.

    An exception that its frame raises is the one that the user's code would get from PyTorch. Mark
    only functions whose own statements cannot fail otherwise.
    """
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        _STANDS_FOR_TORCH.add(code)
    return function


def _owner(code: CodeType) -> _Owner:
    return "marked" if code in _STANDS_FOR_TORCH else _owner_of_file(code.co_filename)


def _owner_of_file(name: str) -> _Owner:
    if name.startswith(_OURS) and name != _DEMO:
        return "step" if name.startswith(_STEP) else "bsfind"
    if name.startswith(_TORCH):
        return "torch"
    if name.startswith("<"):
        return "library"
    if name.startswith(_LIBRARY) and not is_installed_file(name):
        return "library"
    return "user"


def _owners(trace: TracebackType | None) -> list[_Owner]:
    """Return the owner of each frame of a traceback; first that of the frame that raised."""
    owners = []
    while trace is not None:
        owners.append(_owner(trace.tb_frame.f_code))
        trace = trace.tb_next
    return owners[::-1]


def is_bsfinds_own(error: BaseException) -> bool:
    """Tell whether an exception is a bug in bsfind rather than a failure of the user's code.

    It is if a frame of bsfind raised it, or made the call in which torch raised it. Where torch
    refused an operator that the user's code called, it is the user's, also if bsfind ran in between.
    """
    owners = _owners(error.__traceback__)
    if isinstance(error, InternalError):
        return owners[:1] != ["user"]
    if isinstance(error, RecursionError):  # any frame may exceed the limit
        return "user" not in owners and "torch" not in owners
    if isinstance(error, MemoryError):  # the model fills the host's memory
        return False
    if is_message_of_torch(error):
        return False
    if owners[:1] == ["marked"] and isinstance(error, NameError):
        return True
    has_marked = False
    called_torch = is_from_cpp(error)
    for owner in owners:
        if owner == "marked":
            has_marked = True
        elif owner == "torch":
            called_torch = True
        elif owner == "step":
            return not (has_marked or called_torch)
        elif owner == "bsfind" and not has_marked:
            return True
        elif owner == "user":
            return False
    return False


def _replaced(error: BaseException) -> str | None:
    """Return what an error may come from, since the user's code has replaced it; None: nothing."""
    if sys.modules.get("torch") is not torch:
        return "sys.modules"
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    called = [name for code in reversed(codes) for name in code.co_names]
    for owner, names in (*((owner, called) for owner in _ORIGINALS), (torch.cuda, dir(torch.cuda))):
        for name in names:
            now = getattr(owner, name, None)
            maker = str(getattr(now, "__module__", None)).partition(".")[0]
            if now is not _ORIGINALS[owner].get(name, now) and maker not in ("bsfind", "torch"):
                return f"{owner.__name__}.{name}"
    return None


def is_raised_by_user(error: BaseException) -> bool:
    """Tell whether a frame of the user's code, or of a library's, raised an exception."""
    owners = _owners(error.__traceback__)
    return bool(owners) and owners[0] == "user"


def is_message_of_torch(error: BaseException) -> bool:
    """Tell whether an exception is one that torch's Python code raises for itself.

    Activation checkpointing ends a recomputation by such an exception, in hooks of any operator.
    """
    of_torch = type(error).__module__.startswith("torch.")
    return of_torch and _owners(error.__traceback__)[:1] == ["torch"]


def raising_package(error: BaseException) -> str | None:
    """Return the top-level package whose code raised an exception; None for torch's and bsfind's."""
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
    return bool(owners) and owners[0] == "marked" and is_raised(error)


def is_from_cpp(error: BaseException) -> bool:
    """Tell whether torch's C++ code raised an error, which has no frames."""
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


def is_installed_file(name: str) -> bool:
    """Tell whether a file is of an installed package."""
    return any(part in name for part in _INSTALLED)


def is_user_file(name: str) -> bool:
    """Tell whether a file is the user's own: not of Python, PyTorch, bsfind or an installed package."""
    return _owner_of_file(name) == "user" and not is_installed_file(name)


def is_user_frame(code: CodeType) -> bool:
    """Tell whether a frame is of the user's own code (see `is_user_file`)."""
    return is_user_file(code.co_filename) and _owner(code) == "user"


def user_line() -> str | None:
    """Return `file:line` of the innermost frame of the user's own code that runs now, if there is one."""
    frame = _running_frame(is_user_frame)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else None


def running_code() -> str | None:
    """Return the line of the user's or a library's code that calls torch now, if there is one.

    As `rpn.py:255 of torchvision: keep = keep[:limit]`; the library is left out in the user's files.
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


def _is_plumbing(filename: str) -> bool:
    return filename.startswith(_OURS) or any(part in filename for part in _PLUMBING)


def user_traceback(error: BaseException) -> str:
    """Return the traceback with the frames of bsfind and of torch's call machinery left out.

    Chained exceptions are kept. All frames are kept if none is the user's.
    """
    summary = traceback.TracebackException.from_exception(error, capture_locals=False)
    seen: set[int] = set()
    link: traceback.TracebackException | None = summary
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        kept = [frame for frame in link.stack if not _is_plumbing(frame.filename)]
        if kept:
            link.stack = traceback.StackSummary.from_list(kept)
        link = link.__cause__ or link.__context__
    lines = [line[:_MAX_LINE] for line in "".join(summary.format()).rstrip().splitlines()]
    if len(lines) > _MAX_LINES:
        cut = len(lines) - _MAX_LINES
        lines = [*lines[: _MAX_LINES // 3], f"  … {cut} lines …", *lines[-_MAX_LINES * 2 // 3 :]]
    return _as_on_cuda("\n".join(lines))


def text_of(error: BaseException) -> str:
    """Return an exception as one short line: `ValueError: too many samples`, `AssertionError in net.py:7`."""
    error = plain(error)
    if said := _said(error):
        return said
    where = _where(error.__traceback__)
    return f"{type(error).__name__} in {where}" if where else type(error).__name__


def user_error(error: BaseException, *, doing: str, inputs: str | None = None) -> BsfindError:
    """Return the error that reports an exception in the user's code.

    bsfind's own errors are returned unchanged; its bugs become `InternalError`, faults of the GPU
    errors of the device.

    Args:
        error: the exception.
        doing: what bsfind did: `building the model`, `batch size 4 in fp32`.
        inputs: the model's inputs as text, if there were any.
    """
    if isinstance(error, BsfindError) and not isinstance(error, InternalError):
        return error
    error = plain(error)
    if is_bsfinds_own(error) and not stands_in(error):
        if (name := _replaced(error)) is not None:
            return TargetError(
                f"the code has replaced `{name}`, which bsfind calls: `{_said(error)}`, {doing}",
                hint="leave it as it is while bsfind runs",
            )
        if isinstance(error, InternalError):
            return error
        details = "".join(traceback.format_exception(error))
        return InternalError(f"{type(error).__name__}: {error}, {doing}", detail=details)
    fault = device_fault(error, doing=doing, traceback=user_traceback(error))
    if fault is not None:
        return fault
    where = _where(error.__traceback__)
    if not _HAS_CUDA and (needed := _CUDA_ONLY.search(str(error))):
        name = next((f"`torch._C.{name}`" for name in needed.groups() if name), "CUDA itself")
        return UntraceableError(
            f"the code{f' in {where}' if where else ''} needs {name}, which this build of PyTorch "
            f"does not have, {doing}",
            detail=user_traceback(error),
            hint="such code cannot be predicted: `--device cuda` measures, on a machine with a GPU",
        )
    what = _said(error) or type(error).__name__
    package = raising_package(error)
    if not _HAS_CUDA and package in _CUDA_LIBRARIES and isinstance(error, _NO_GPU_ERRORS):
        return UntraceableError(
            f"`{package}` runs CUDA code of its own here, which cannot be predicted: {what}, {doing}",
            detail=user_traceback(error),
            hint="`--device cuda` measures, on a machine with a GPU; an optimizer of PyTorch's own "
            "(`--optimizer adamw`) gives an estimate",
        )
    message = f"`{what}` in {where}, {doing}" if where else f"`{what}`, {doing}"
    if isinstance(error, SystemExit):
        message = f"the code called `sys.exit({error.code!r})`, {doing}"
    hint, detail = "", user_traceback(error)
    if is_no_network(error):
        walked = traceback.walk_tb(error.__traceback__)
        frames = [at for at in walked if not at[0].f_code.co_filename.startswith(_OURS)]
        hint = (
            how_to_go_without(frames, is_user_file)
            or "there is no network: what the code downloads has to be here"
        )
    elif "operator torchvision::nms does not exist" in detail:
        hint = "torchvision was built for another PyTorch than the one installed: install both together"
    elif inputs and (about := _about_inputs(error)):
        hint = f"the inputs were {inputs}{about}"
    return TargetError(message, detail=detail, hint=hint)


_ARGUMENTS = re.compile(r"forward\(\)|positional argument|keyword argument", re.IGNORECASE)
_GOT = re.compile(r"\b(?:got|received)\b(?P<given>.*)", re.DOTALL)
_DIMENSIONS = re.compile(r"\b(\d)[- ]?[dD](?:im\w*)?\b")
_SIZE = re.compile(r"\[(\d+(?:, \d+)*)\]")
_DEVICES = re.compile(r"same device|\bis on (the )?cpu\b", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(shapes?|sizes?|dim|dims|dimensions?|dimensional|channels?|stride|view|reshape|broadcast\w*"
    r"|index \S+ is out of bounds|out of range|\d-?D|unpack|rank)\b",
    re.IGNORECASE,
)
_DTYPES = re.compile(
    r"\b(dtypes?|scalar ?type|expected .*(type|Tensor)|not implemented for|same type"
    r"|(Float|Double|Half|BFloat16|Long|Int|Bool|Byte|Char|ComplexFloat)(Tensor)?)\b"
)


def _about_inputs(error: BaseException) -> str:
    """Return what an error suggests about the inputs, to follow their description; "" for nothing."""
    text = str(error)
    if isinstance(error, TypeError) and _ARGUMENTS.search(text):
        return ": `--input NAME=SHAPE` gives an argument of `forward` by its name"
    if _DEVICES.search(text):
        return ": does the code make its own tensors on their device (`device=x.device`)?"
    front = "bsfind puts the batch dimension in front of each shape"
    if _has_one_dimension_too_many(text):
        return f", one dimension too many: shapes have no batch dimension, {front}"
    if isinstance(error, IndexError) and "rows of the embedding" in text:
        return ": integers lie in the range that `--input NAME=SHAPE:int64:LOW..HIGH` gives"
    if _SHAPES.search(text):
        return f": do these shapes fit the model? ({front})"
    return ": do these dtypes fit the model?" if _DTYPES.search(text) else ""


def _has_one_dimension_too_many(text: str) -> bool:
    """Tell whether an error says that an input has one dimension more than a layer takes at most.

    As `Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [4, 2, 3, 8, 8]`,
    `expected 4D input (got 5D input)`, `LSTM: Expected input to be 2D or 3D, got 4D instead`.
    """
    got = _GOT.search(text)
    if got is None:
        return False
    wanted = [int(count) for count in _DIMENSIONS.findall(text[: got.start()])]
    size, count = _SIZE.search(got["given"]), re.search(r"\d", got["given"])
    if not wanted or count is None:
        return False
    given = size[1].count(",") + 1 if size else int(count[0])
    return given == max(wanted) + 1


def _said(error: BaseException) -> str | None:
    lines = _as_on_cuda(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:_MAX_MESSAGE]}" if lines else None


def _as_on_cuda(text: str) -> str:
    """Return a text of PyTorch with the tensor types that it would name on a GPU."""
    text = re.sub(r"\bMeta(\w+)Type\b", r"torch.cuda.\1Tensor", text)
    return re.sub(r"\b1D meta (?=\w+ tensor)", "1D cuda:0 ", text)


def _where(trace: TracebackType | None) -> str | None:
    """Return `file:line` of the innermost frame that is neither bsfind's nor of an installed package."""
    for frame in reversed(traceback.extract_tb(trace)):
        if not _is_plumbing(frame.filename) and not is_installed_file(frame.filename):
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return None

"""A user's exception as the user wants to read it: their frames, not ours."""

from __future__ import annotations

import re
import traceback
from pathlib import Path
from types import TracebackType

import torch

from bsfind.errors import BsfindError, InternalError, TargetError, UntraceableError
from bsfind.failures.gpu_faults import device_fault
from bsfind.workload.blame import is_bsfinds_own, raising_package

_OURS = str(Path(__file__).resolve().parents[1])
# Frames through which every call of a module or of the import system passes.
_PLUMBING = ("torch/nn/modules/module.py", "<frozen importlib", "importlib/__init__.py")
# What PyTorch's CPU build says where code goes past `torch.cuda`, which a prediction stands in for.
_CUDA_ONLY = re.compile(
    r"module 'torch\._C' has no attribute '(\w+)'|cannot import name '(\w+)' from 'torch\._C'"
    r"|Torch not compiled with CUDA enabled|not linked with support for cuda"
)
# Packages whose kernels PyTorch knows nothing of, and what they raise where there is no GPU.
_CUDA_LIBRARIES = frozenset(
    (
        *("apex", "bitsandbytes", "causal_conv1d", "deepspeed", "flash_attn", "mamba_ssm"),
        *("natten", "spconv", "transformer_engine", "triton", "xformers"),
    )
)
_NO_GPU_ERRORS = (AssertionError, AttributeError, ImportError, OSError, RuntimeError)
_HAS_CUDA = torch.version.cuda is not None
_MAX_LINES = 60
_MAX_MESSAGE = 160


def _is_plumbing(filename: str) -> bool:
    return filename.startswith(_OURS) or any(part in filename for part in _PLUMBING)


def user_traceback(error: BaseException) -> str:
    """Return the traceback with the frames of bsfind and of torch's call machinery left out.

    Chained exceptions are kept. All frames stay if the user has none in it.
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
    lines = "".join(summary.format()).rstrip().splitlines()
    if len(lines) > _MAX_LINES:
        cut = len(lines) - _MAX_LINES
        lines = [*lines[: _MAX_LINES // 3], f"  … {cut} lines …", *lines[-_MAX_LINES * 2 // 3 :]]
    return _as_on_cuda("\n".join(lines))


def text_of(error: BaseException) -> str:
    """Return an exception as one short line: `ValueError: too many samples`, `AssertionError in net.py:7`."""
    if said := _said(error):
        return said
    where = _where(error.__traceback__)
    return f"{type(error).__name__} in {where}" if where else type(error).__name__


def user_error(error: BaseException, *, doing: str, inputs: str | None = None) -> BsfindError:
    """Return the error that reports a failure of the user's code.

    bsfind's own errors pass through unchanged; its bugs are `InternalError`; faults of the GPU are
    told from those of the code.

    Args:
        error: what was raised.
        doing: what was going on: `building the model`, `batch size 4 in fp32`.
        inputs: the model's inputs as text, if there were any.
    """
    if isinstance(error, BsfindError):
        return error
    if is_bsfinds_own(error):
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
    hint = (
        f"the inputs were {inputs}{_about_inputs(error)}" if inputs and _about_inputs(error) else ""
    )
    return TargetError(message, detail=user_traceback(error), hint=hint)


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
    if _SHAPES.search(text):
        return f": do these shapes fit the model? ({front})"
    return ": do these dtypes fit the model?" if _DTYPES.search(text) else ""


def _has_one_dimension_too_many(text: str) -> bool:
    """Tell whether a layer says that it got one dimension more than the most that it takes.

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
    """Return a text of PyTorch's with the types of tensors that it names on a GPU."""
    text = re.sub(r"\bMeta(\w+)Type\b", r"torch.cuda.\1Tensor", text)
    return re.sub(r"\b1D meta (?=\w+ tensor)", "1D cuda:0 ", text)


def _where(trace: TracebackType | None) -> str | None:
    """Return `file:line` of the innermost frame that is neither ours nor in site-packages."""
    for frame in reversed(traceback.extract_tb(trace)):
        if not _is_plumbing(frame.filename) and "site-packages" not in frame.filename:
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return None

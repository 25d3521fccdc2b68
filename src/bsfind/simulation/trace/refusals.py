"""Tells why an operator failed while a step was traced: the user's call, a meta kernel, or bsfind.

torch's meta kernels check arguments by themselves, and some refuse what CUDA takes. To tell whether a
call is at fault, it is tried on the CPU, with zeros of the same shapes and dtypes: what the CPU
refuses, CUDA refuses as well, in the same words.
"""

from __future__ import annotations

import itertools
import operator
import re
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from bsfind.errors import BsfindError, InternalError, UntraceableError
from bsfind.simulation.kernels.argument_checks.registry import in_words_of_cuda
from bsfind.simulation.trace.calls import Args, Kwargs, flat_tensors, mapped
from bsfind.simulation.trace.torch_private import TorchFunctionOff, without_fake
from bsfind.workload.user_errors import (
    is_bsfinds_own,
    is_from_cpp,
    is_message_of_torch,
    is_raised_by_user,
    is_said_for_torch,
    running_code,
    stands_for_torch,
    user_error,
    user_line,
    user_traceback,
)

_MAX_BYTES = 1 << 28
"""Of the tensors of a call that is tried on the CPU."""

_REFUSED = "_bsfind_refused"


@stands_for_torch
def raise_refusal(op: Any, args: Args, kwargs: Kwargs, error: Exception) -> NoReturn:
    """Raise what the failure of an operator means for the user.

    Args:
        op: the operator.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        error: what was raised while it was traced.

    Raises:
        UntraceableError: the call is sound, and torch cannot run it without a GPU.
        InternalError: the call is sound, and bsfind failed to trace it.
        Exception: what PyTorch raises for this call.
    """
    meaning = _meaning(op, args, kwargs, error)
    try:
        raise meaning from error.__cause__
    finally:  # no cycle through this frame may keep tensors alive: checkpoints raise in every step
        del meaning, error


def _meaning(op: Any, args: Args, kwargs: Kwargs, error: Exception) -> Exception:
    own = (BsfindError, RecursionError, MemoryError, torch.OutOfMemoryError)
    if isinstance(error, own) or is_raised_by_user(error):
        return error
    if is_message_of_torch(error):
        return error
    was_refused = hasattr(error, _REFUSED)
    if is_said_for_torch(error) and not was_refused:
        return error
    refusal = _refusal_by_cpu(op, args, kwargs)
    if refusal is None and _are_on_two_devices((*args, *kwargs.values())):
        refusal = RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            "cuda:0 and cpu!"
        )
    if refusal is not None:
        # C++ checks on the GPU as it does here, and with the values that the zeros are not. The frames
        # of a kernel of bsfind in which it was raised have no part in it.
        refusal = error.with_traceback(None) if is_from_cpp(error) else refusal
        setattr(refusal, _REFUSED, True)
        return refusal
    said = f"{type(error).__name__}: {error}"
    # An operator that a kernel of bsfind called on the way is at fault, where this one is not.
    if is_bsfinds_own(error) or was_refused:
        details = "".join(traceback.format_exception(error))
        return InternalError(f"`{_label(op)}` could not be traced: {said}", detail=details)
    return untraceable(_label(op), no_kernel(error))


def untraceable(operator: str, why: str) -> UntraceableError:
    """Return the error for an operator that cannot be traced where the user's code calls it now.

    Args:
        operator: its name.
        why: it cannot be traced, to follow a colon.
    """
    where, code = user_line(), running_code()
    return UntraceableError(
        f"`{operator}`{f' in {where}' if where else ''} cannot be predicted: {why}",
        detail=code or "",
        hint="`--device cuda` measures instead, on a machine with a GPU; "
        "`--step` or `--batch-fn` can leave out what needs values",
    )


def report_of(error: BaseException, *, doing: str, inputs: str | None = None) -> BsfindError:
    """Return the error that reports what ended a trace.

    Args:
        error: what was raised.
        doing: what was going on, as in `user_error`.
        inputs: the model's inputs as text, if there were any.
    """
    in_words_of_cuda(error)
    if type(error).__module__.startswith(_COMPILER):
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return UntraceableError(
            f"the code compiles itself (`torch.compile`), and compiled kernels choose their memory "
            f"themselves, {doing}",
            detail=f"{said}\n{user_traceback(error)}",
            hint="leave it out for an estimate of the uncompiled step, or measure on a GPU",
        )
    if "INTERNAL ASSERT FAILED" in str(error):  # of weights that wrap other tensors, in torch 2.6
        return UntraceableError(
            f"torch {torch.__version__} cannot trace the model: an assertion of its own failed, {doing}",
            detail=f"{error}\n{user_traceback(error)}",
            hint="a newer PyTorch may trace it; `--device cuda` measures it on a GPU",
        )
    return user_error(error, doing=doing, inputs=inputs)


_COMPILER = ("torch._dynamo", "torch._inductor", "torch._functorch")
_BACKEND = re.compile(r"Could not run '([\w:.]+)' with arguments from the '(\w+)' backend")


def no_kernel(error: Exception) -> str:
    """Return in one sentence why torch has no kernel: its own text is a table of all backends."""
    said = f"{type(error).__name__}: {error}"
    found = _BACKEND.search(said)
    if isinstance(error, NotImplementedError) and found is not None:
        sparse = " for sparse tensors" if "Sparse" in found[2] else ""
        return (
            f"torch {torch.__version__} has no kernel of `{found[1]}`{sparse} that needs no values"
        )
    if "out of meta tensor" in said:
        return f"torch {torch.__version__} needs values that are on the GPU"
    first = said.strip().splitlines()[0]
    return f"torch {torch.__version__} does not run it without a GPU ({first})"


def refusing(op: Any, kernel: Any) -> Any:
    """Return a kernel whose failures are told apart by `raise_refusal`."""

    @stands_for_torch
    def told_apart(*args: Any, **kwargs: Any) -> Any:
        try:
            return kernel(*args, **kwargs)
        except Exception as error:
            raise_refusal(op, args, kwargs, error)

    return told_apart


def _label(op: Any) -> str:
    return str(op).removeprefix("aten.").removesuffix(".default")


def _refusal_by_cpu(op: Any, args: Args, kwargs: Kwargs) -> Exception | None:
    """Return what PyTorch raises for a call on the CPU; None: nothing, or it cannot be tried."""
    total = 0

    def on_host(value: Any) -> Any:
        nonlocal total
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
            if total > _MAX_BYTES or value.layout is not torch.strided:
                raise _TooLargeError
            extent = 1 + sum(
                (size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True)
            )
            zeros = torch.zeros(extent if value.numel() else 0, dtype=value.dtype)
            return zeros.as_strided(value.size(), value.stride())
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    with TorchFunctionOff(), without_fake(), torch.no_grad():
        try:
            op(*mapped(args, on_host), **mapped(kwargs, on_host))
        except _TooLargeError:
            return _refusal_of_shapes(op, (*args, *kwargs.values()))
        except NotImplementedError:
            return None  # no kernel for this dtype says nothing about CUDA
        except Exception as refusal:
            return refusal.with_traceback(None)
    return None


def _refusal_of_shapes(op: Any, values: Sequence[Any]) -> Exception | None:
    """Return what PyTorch raises for operands, of any size, whose shapes do not match; None if they do."""
    if torch.Tag.pointwise not in op.tags:
        return None
    shapes = [tensor.shape for tensor in flat_tensors(list(values)) if tensor is not None]
    for pair in itertools.combinations(shapes, 2):
        ends = zip(*map(reversed, pair), strict=False)
        if any(1 not in sizes and len(set(sizes)) > 1 for sizes in ends):
            try:
                operator.add(*(torch.zeros(()).expand(shape) for shape in pair))
            except RuntimeError as refusal:
                return refusal.with_traceback(None)
    return None


def _are_on_two_devices(values: Sequence[Any]) -> bool:
    """Tell whether a call has tensors of the simulated GPU and of the host, numbers aside."""
    tensors = [tensor for tensor in flat_tensors(list(values)) if tensor is not None]
    on_gpu = any(tensor.is_meta for tensor in tensors)
    return on_gpu and any(not tensor.is_meta and tensor.dim() > 0 for tensor in tensors)


class _TooLargeError(Exception):
    """The call is not tried: it would take the host's memory and time."""

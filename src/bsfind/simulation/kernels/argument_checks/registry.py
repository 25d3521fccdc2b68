"""Registers the checks of operators and runs them, with the names of dtypes that they share.

The other modules of this package hold the checks of a family of operators, in the order in which
PyTorch makes them and with its texts (torch 2.13, as the CUDA build prints them).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import torch

from bsfind.simulation.kernels.argument_checks.devices import check_devices
from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.workload.user_errors import stands_for_torch

HALVES = frozenset({torch.float16, torch.bfloat16})
FLOATING = frozenset({torch.float32, torch.float64, *HALVES})
"""`AT_DISPATCH_FLOATING_TYPES_AND2(kHalf, kBFloat16, ...)`, which most kernels of layers have."""

Check = Callable[[Call], None]
"""Raises what the CUDA kernel raises for the dtypes of a call, with the same text."""

_NAMES = {
    torch.float32: ("Float", "float", "torch.cuda.FloatTensor"),
    torch.float64: ("Double", "double", "torch.cuda.DoubleTensor"),
    torch.float16: ("Half", "c10::Half", "torch.cuda.HalfTensor"),
    torch.bfloat16: ("BFloat16", "c10::BFloat16", "CUDABFloat16Type"),
    torch.int64: ("Long", "long int", "torch.cuda.LongTensor"),
    torch.int32: ("Int", "int", "torch.cuda.IntTensor"),
    torch.int16: ("Short", "short int", "torch.cuda.ShortTensor"),
    torch.int8: ("Char", "signed char", "torch.cuda.CharTensor"),
    torch.uint8: ("Byte", "unsigned char", "torch.cuda.ByteTensor"),
    torch.bool: ("Bool", "bool", "CUDABoolType"),
    torch.complex64: ("ComplexFloat", "c10::complex<float>", "CUDAComplexFloatType"),
    torch.complex128: ("ComplexDouble", "c10::complex<double>", "CUDAComplexDoubleType"),
    torch.complex32: ("ComplexHalf", "c10::complex<c10::Half>", "CUDAComplexHalfType"),
}

_CHECKS: dict[str, list[Check]] = {}


def scalar_name(dtype: torch.dtype) -> str:
    """Return the name of a `c10::ScalarType`: `Half`."""
    return _NAMES[dtype][0] if dtype in _NAMES else str(dtype).removeprefix("torch.").capitalize()


def cpp_name(dtype: torch.dtype) -> str:
    """Return the name of a `caffe2::TypeMeta`: `c10::Half`."""
    return _NAMES[dtype][1] if dtype in _NAMES else f"c10::{scalar_name(dtype)}"


def tensor_name(tensor: TensorSpec) -> str:
    """Return `Tensor.toString()`: `torch.cuda.HalfTensor`."""
    dtype = tensor.dtype
    name = _NAMES[dtype][2] if dtype in _NAMES else f"CUDA{scalar_name(dtype)}Type"
    return name if tensor.on_gpu else name.replace("torch.cuda.", "torch.").replace("CUDA", "CPU")


def checks(*operators: str) -> Callable[..., Check]:
    """Register checks of operators: `aten::addmm` for all overloads, or `aten::pow.Scalar`.

    The checks of an operator are made in the order of their registration.
    """

    def register(*registered: Check) -> Check:
        for operator in operators:
            _CHECKS.setdefault(operator, []).extend(registered)
        return registered[0]

    return register


def checks_for(operator: str, overload: str) -> tuple[Check, ...]:
    """Return the checks of an operator."""
    return (*_CHECKS.get(f"{operator}.{overload}", ()), *_CHECKS.get(operator, ()))


def implements(kernel: str, dtype: torch.dtype, dtypes: Collection[torch.dtype] = FLOATING) -> None:
    """Refuse a dtype that a kernel is not compiled for (`AT_DISPATCH_SWITCH`, ATen/Dispatch.h)."""
    if dtype not in dtypes:
        raise NotImplementedError(f"\"{kernel}\" not implemented for '{scalar_name(dtype)}'")


def expects(dtype: torch.dtype, tensor: TensorSpec | None) -> None:
    """Refuse a tensor whose elements a kernel cannot read as a dtype (`data_ptr<scalar_t>`)."""
    if tensor is not None and tensor.dtype != dtype:
        raise RuntimeError(
            f"expected scalar type {scalar_name(dtype)} but found {scalar_name(tensor.dtype)}"
        )


def dispatches(
    kernel: str, argument: str, dtypes: Collection[torch.dtype] = FLOATING, *others: str
) -> Check:
    """Return the check of a kernel that dispatches on one argument and reads others as its dtype."""

    def check(call: Call) -> None:
        dtype = call.tensor(argument).dtype
        implements(kernel, dtype, dtypes)
        for other in others:
            expects(dtype, call.maybe_tensor(other))

    return check


def requires(
    argument: str,
    dtypes: Collection[torch.dtype],
    text: str,
    error: type[Exception] = RuntimeError,
    name: Callable[[torch.dtype], str] = scalar_name,
) -> Check:
    """Return the check of an operator that takes some dtypes only.

    Args:
        argument: name of the tensor.
        dtypes: the dtypes that the operator takes.
        text: text of the error, with {} for the name of the dtype.
        error: type of the error.
        name: returns the name of a dtype.
    """

    def check(call: Call) -> None:
        dtype = call.tensor(argument).dtype
        if dtype not in dtypes:
            raise error(text.format(name(dtype)))

    return check


def same_dtype(
    first: str, second: str, text: str, name: Callable[[torch.dtype], str] = scalar_name
) -> Check:
    """Return the check of an operator that takes two tensors of one dtype.

    Args:
        first: name of a tensor.
        second: name of the other one.
        text: text of the error, with {} for the name of each dtype.
        name: returns the name of a dtype.
    """

    def check(call: Call) -> None:
        left, right = call.tensor(first).dtype, call.tensor(second).dtype
        if left != right:
            raise RuntimeError(text.format(name(left), name(right)))

    return check


@stands_for_torch
def refuse(call: Call, checks: Sequence[Check], *, is_pointwise: bool) -> None:
    """Raise what CUDA raises for a call, if it refuses the call.

    Args:
        call: the call; without any tensor on the GPU it does not run on CUDA.
        checks: the checks of the operator.
        is_pointwise: whether the operator works element by element.
    """
    on_gpu = [tensor.on_gpu for _, tensor in call.tensors()]
    if not any(on_gpu):
        return
    try:
        if not all(on_gpu):
            check_devices(call, is_pointwise)
        for check in checks:
            check(call)
    except (RuntimeError, IndexError) as refusal:  # raised anew: not a failure of the check
        raise refusal.with_traceback(None) from None


_LEGACY = "Double|Float|Half|Long|Int|Short|Char|Byte"
# What PyTorch prints of devices and tensor types: `meta`, `MetaFloatType`, `torch.meta.FloatTensor`.
_REPLACEMENTS = (
    (
        re.compile(r"Tensor on device \w+ is not on the expected device \w+!"),
        "Expected all tensors to be on the same device, "
        "but found at least two devices, cuda:0 and cpu!",
    ),
    (re.compile(rf"\bMeta({_LEGACY})Type\b"), r"torch.cuda.\1Tensor"),
    (re.compile(r"\bMeta(\w+)Type\b"), r"CUDA\1Type"),
    (re.compile(r"\btorch\.meta\.(\w+Tensor)\b"), r"torch.cuda.\1"),
    (re.compile(r"\bmeta (DeviceType|device type)\b"), r"cuda \1"),
    (re.compile(r"(?<![\w./'`\"-])meta(?![\w/'`\"-]|\.\w| tensor| kernel| function)"), "cuda:0"),
)


def in_words_of_cuda(error: BaseException) -> None:
    """Make an exception that PyTorch raised for meta tensors name the GPU instead."""
    if error.args and isinstance(error.args[0], str) and "meta" in error.args[0].lower():
        text = error.args[0]
        for pattern, replacement in _REPLACEMENTS:
            text = pattern.sub(replacement, text)
        error.args = (text, *error.args[1:])

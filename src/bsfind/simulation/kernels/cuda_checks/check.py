"""Registers the checks of operators, and the predicates and names of dtypes that they share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch

from bsfind.simulation.kernels.call import Call, TensorSpec

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


def checks(*operators: str) -> Callable[[Check], Check]:
    """Register a check of operators: `aten::addmm` for all overloads, or `aten::pow.Scalar`.

    Several checks of one operator are made in the order of their registration.
    """

    def register(check: Check) -> Check:
        for operator in operators:
            _CHECKS.setdefault(operator, []).append(check)
        return check

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


def specs_of(call: Call) -> Iterator[tuple[str, TensorSpec]]:
    """Yield the tensors of a call with the names of their arguments, those of lists too."""
    for name, value in call.arguments.items():
        if isinstance(value, TensorSpec):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((name, item) for item in value if isinstance(item, TensorSpec))


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

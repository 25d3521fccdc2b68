"""Matrix products: aten/src/ATen/native/LinearAlgebra.cpp and native/cuda/Blas.cpp."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.kernels.cuda_checks.check import (
    FLOATING,
    checks,
    cpp_name,
    expects,
    implements,
    scalar_name,
)

_BLAS = FLOATING | {torch.complex64, torch.complex128}


@checks("aten::mm")
def _mm(call: Call) -> None:
    left, right = call.tensor("self").dtype, call.tensor("mat2").dtype
    if left != right:
        raise RuntimeError(
            "expected mat1 and mat2 to have the same dtype, "
            f"but got: {cpp_name(left)} != {cpp_name(right)}"
        )
    implements("addmm_cuda", left, _BLAS)


def _same(first: str, left: TensorSpec, second: str, right: TensorSpec) -> None:
    if left.dtype != right.dtype:
        raise RuntimeError(
            f"{first} and {second} must have the same dtype, "
            f"but got {scalar_name(left.dtype)} and {scalar_name(right.dtype)}"
        )


@checks("aten::addmm", "aten::addmm_", "aten::_addmm_activation")
def _addmm(call: Call) -> None:
    bias, left, right = (call.tensor(name) for name in ("self", "mat1", "mat2"))
    _same("self", bias, "mat2", right)
    _same("mat1", left, "mat2", right)
    implements("addmm_cuda", bias.dtype, _BLAS)


@checks("aten::addbmm", "aten::addbmm_")
def _addbmm(call: Call) -> None:
    """`addbmm_impl_` calls `addmm` for each matrix."""
    bias, left, right = (call.tensor(name) for name in ("self", "batch1", "batch2"))
    _same("self", bias, "mat2", right)
    _same("mat1", left, "mat2", right)
    implements("addmm_cuda", bias.dtype, _BLAS)


@checks("aten::bmm")
def _bmm(call: Call) -> None:
    dtype = call.tensor("self").dtype
    implements("baddbmm_cuda", dtype, _BLAS)
    expects(dtype, call.tensor("mat2"))


@checks("aten::baddbmm", "aten::baddbmm_")
def _baddbmm(call: Call) -> None:
    addend, left, right = (call.tensor(name).dtype for name in ("self", "batch1", "batch2"))
    if addend != left:
        raise RuntimeError(
            f"Input dtypes must be the same, got: input {cpp_name(addend)}, "
            f"batch1: {cpp_name(left)}, batch2: {cpp_name(right)}"
        )
    implements("baddbmm_cuda", addend, _BLAS)
    expects(addend, call.tensor("batch2"))


@checks("aten::mv", "aten::addmv", "aten::addmv_")
def _addmv(call: Call) -> None:
    """`mv` is an `addmv` onto a vector of the dtype of `vec`."""
    is_mv = call.operator == "aten::mv"
    matrix = call.tensor("self" if is_mv else "mat").dtype
    vector = call.tensor("vec").dtype
    addend = vector if is_mv else call.tensor("self").dtype
    if not addend == matrix == vector:
        raise RuntimeError(
            "addmv input tensors must have the same dtype, but got "
            f"{scalar_name(addend)}, {scalar_name(matrix)}, and {scalar_name(vector)}"
        )
    implements("addmv_impl_cuda", matrix, _BLAS)


@checks("aten::dot", "aten::vdot")
def _dot(call: Call) -> None:
    names = ("self", "tensor") if call.operator == "aten::dot" else ("self", "other")
    left, right = (call.tensor(name).dtype for name in names)
    if left != right:
        raise RuntimeError(
            "dot : expected both vectors to have same dtype, "
            f"but found {scalar_name(left)} and {scalar_name(right)}"
        )
    implements("dot", left, _BLAS)


@checks("aten::_trilinear")
def _trilinear(call: Call) -> None:
    """`_trilinear` of aten/src/ATen/native/Linear.cpp multiplies slices with `bmm`."""
    implements("baddbmm_cuda", call.tensor("i1").dtype, _BLAS)


@checks("aten::conv_tbc")
def _conv_tbc(call: Call) -> None:
    """`conv_tbc` of aten/src/ATen/native/ConvolutionTBC.cpp: `addmm_` onto the bias."""
    x = call.tensor("self")  # whose dtype the output has, and the bias is copied to it
    _same("self", x, "mat2", call.tensor("weight"))
    implements("addmm_cuda", x.dtype, _BLAS)


@checks("aten::_cdist_forward")
def _cdist(call: Call) -> None:
    """`cdist_kernel_impl` of native/cuda/DistanceKernel.cu."""
    for argument, name in (("x1", "X1"), ("x2", "X2")):
        if not call.tensor(argument).dtype.is_floating_point:
            raise RuntimeError(
                "cdist only supports floating-point dtypes, "
                f"{name} got: {scalar_name(call.tensor(argument).dtype)}"
            )
    dtype = call.tensor("x1").dtype
    implements("cdist_cuda", dtype, {torch.float32, torch.float64})
    expects(dtype, call.tensor("x2"))


@checks("aten::linalg_cross")
def _cross(call: Call) -> None:
    """`linalg_cross_kernel`: a TensorIterator without promotion, native/cuda/CrossKernel.cu."""
    left, right = call.tensor("self").dtype, call.tensor("other").dtype
    if left != right:
        raise RuntimeError(f"Found dtype {scalar_name(right)} but expected {scalar_name(left)}")
    if left == torch.bool:
        implements("cross_cuda", left, ())

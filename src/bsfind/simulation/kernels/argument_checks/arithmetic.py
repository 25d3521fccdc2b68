"""Arithmetic and linear algebra.

aten/src/ATen/native/{BinaryOps,Lerp,ReduceOps,TensorFactories,LinearAlgebra,BatchLinearAlgebra}.cpp and
native/cuda/Blas.cpp.
"""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.argument_checks.registry import (
    FLOATING,
    Check,
    checks,
    cpp_name,
    dispatches,
    expects,
    implements,
    same_dtype,
    scalar_name,
)
from bsfind.simulation.kernels.call import Call, TensorSpec

_REAL = (torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
_BLAS = FLOATING | {*_COMPLEX}
_A_BOOL = (
    "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to "
    "invert a mask, use the `~` or `logical_not()` operator instead."
)
TWO_BOOLS = (
    "Subtraction, the `-` operator, with two bool tensors is not supported. "
    "Use the `^` or `logical_xor()` operator instead."
)


def _is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def can_be_stored(common: torch.dtype, output: torch.dtype) -> None:
    """Refuse to write a result to a tensor that cannot hold it (`compute_types`, TensorIterator.cpp)."""
    if not torch.can_cast(common, output):
        raise RuntimeError(
            f"result type {scalar_name(common)} can't be cast to the desired output type "
            f"{scalar_name(output)}"
        )


@checks("aten::sub", "aten::sub_", "aten::rsub")
def _sub(call: Call) -> None:
    """`sub_check`."""
    is_bool = [_is_bool(call["self"]), _is_bool(call["other"])]
    if any(is_bool):
        raise RuntimeError(TWO_BOOLS if all(is_bool) else _A_BOOL)


def _is_bool(value: TensorSpec | float) -> bool:
    return value.dtype == torch.bool if isinstance(value, TensorSpec) else value is True


def _refuses_bools(kernel: str) -> Check:
    """Return the check of a kernel that has no version for operands that are all bools."""

    def check(call: Call) -> None:
        if all(spec.dtype == torch.bool for _, spec in call.tensors()):
            implements(kernel, torch.bool, ())

    return check


for _of_numbers, _missing in (
    ("pow.Tensor_Tensor", "pow_cuda"),
    ("fmod.Tensor", "fmod_cuda"),
    ("addcmul", "addcmul_cuda"),
    ("clamp.Tensor", "clamp_cuda"),
    ("floor", "floor_cuda"),
    ("bucketize.Tensor", "searchsorted_out_cuda"),
):
    checks(f"aten::{_of_numbers}")(_refuses_bools(_missing))


@checks("aten::argmax", "aten::argmin")
def _argmax(call: Call) -> None:
    if call.tensor("self").dtype == torch.bool:
        name = call.operator.removeprefix("aten::")
        raise RuntimeError(f"{name}(): does not support bool input")


@checks("aten::topk")
def _topk(call: Call) -> None:
    if call.tensor("self").dtype == torch.bool:
        raise RuntimeError("topk does not support bool dtypes on CPU")


@checks("aten::relu", "aten::relu_", "aten::hardtanh", "aten::hardtanh_", "aten::_addmm_activation")
def _relu(call: Call) -> None:
    """They call `clamp` (native/Activation.cpp, native/cuda/Blas.cpp)."""
    dtype = call.tensor("self").dtype
    if dtype.is_complex:
        raise NotImplementedError("clamp is not supported for complex types")
    if dtype == torch.bool and call.operator.startswith("aten::relu"):
        raise RuntimeError("Boolean inputs not supported for relu")


@checks("aten::add_.Tensor", "aten::sub_.Tensor", "aten::mul_.Tensor", "aten::div_.Tensor")
def _in_place(call: Call) -> None:
    target, other = call.tensor("self"), call.maybe_tensor("other")
    if other is None:  # a number, which autograd passes for the tensor
        return
    common = torch.result_type(_like(target), _like(other))
    if call.operator == "aten::div_" and _is_integral(common):
        common = torch.get_default_dtype()
    can_be_stored(common, target.dtype)


def _like(spec: TensorSpec) -> torch.Tensor:
    """Return a tensor that is promoted like this one: tensors without dimensions have less weight."""
    return torch.empty((1,) * spec.dim, dtype=spec.dtype, device="cpu")


@checks("aten::lerp", "aten::lerp_")
def _lerp(call: Call) -> None:
    dtype = call.tensor("self").dtype
    for name in ("end", "weight"):
        other = call.maybe_tensor(name)
        if other is not None and other.dtype != dtype and not (name == "weight" and other.dim == 0):
            raise RuntimeError(
                f"expected dtype {cpp_name(dtype)} for `{name}` but got dtype {cpp_name(other.dtype)}"
            )
    if _is_integral(dtype):
        implements("lerp_cuda", dtype, ())


@checks("aten::std", "aten::var", "aten::std_mean", "aten::var_mean")
def _std(call: Call) -> None:
    dtype = call.tensor("self").dtype
    if _is_integral(dtype):
        name = call.operator.removeprefix("aten::")
        name = name if name.endswith("_mean") else "std and var"
        raise RuntimeError(f"{name} only support floating point and complex dtypes")


@checks("aten::mean")
def _mean(call: Call) -> None:
    dtype = call["dtype"] or call.tensor("self").dtype
    if _is_integral(dtype):
        kind = "Optional dtype" if call["dtype"] else "Input dtype"
        raise RuntimeError(
            f"mean(): could not infer output dtype. {kind} must be either a floating point or "
            f"complex dtype. Got: {scalar_name(dtype)}"
        )


@checks("aten::complex")
def _complex(call: Call) -> None:
    """`complex_check_dtype`."""
    real, imaginary = call.tensor("real").dtype, call.tensor("imag").dtype
    allowed = (*_REAL, torch.float16)
    if real not in allowed or imaginary not in allowed:
        raise RuntimeError(
            "Expected both inputs to be Half, Float or Double tensors "
            f"but got {scalar_name(real)} and {scalar_name(imaginary)}"
        )
    if real != imaginary:
        raise RuntimeError(
            f"Expected object of scalar type {scalar_name(real)} "
            f"but got scalar type {scalar_name(imaginary)} for second argument"
        )


@checks("aten::bitwise_and.Tensor", "aten::bitwise_or.Tensor", "aten::bitwise_xor.Tensor")
def _bitwise(call: Call) -> None:
    operands = [call.maybe_tensor(name) for name in ("self", "other")]
    if any(operand is None for operand in operands):
        return
    common = torch.promote_types(*(operand.dtype for operand in operands if operand is not None))
    if not _is_integral(common):
        implements(f"{call.operator.removeprefix('aten::')}_cuda", common, ())


def _decomposition(name: str, argument: str, kernel: str | None) -> Check:
    """Return the check of an operator of torch.linalg (`checkFloatingOrComplex`)."""

    def check(call: Call) -> None:
        dtype = call.tensor(argument).dtype
        if name and _is_integral(dtype):
            raise RuntimeError(
                f"{name}: Expected a floating point or complex tensor as input. "
                f"Got {scalar_name(dtype)}"
            )
        if kernel is not None:
            implements(kernel, dtype, (*_REAL, *_COMPLEX))

    return check


checks("aten::_linalg_solve_ex")(
    _decomposition("linalg.solve", "A", None),
    same_dtype(
        "A",
        "B",
        "linalg.solve: Expected A and B to have the same dtype, but found A of type {} and B of "
        "type {} instead",
    ),
    dispatches("lu_factor_cusolver", "A", (*_REAL, *_COMPLEX)),
)
for _operator, _name, _argument, _needed in (
    ("linalg_vector_norm", "linalg.vector_norm", "self", None),
    ("linalg_cholesky_ex", "linalg.cholesky", "self", "cholesky_cusolver"),
    ("_linalg_det", "linalg.det", "A", "lu_factor_cusolver"),
    ("_linalg_svd", "linalg.svd", "A", "svd_cuda_gesvdjBatched"),
    ("linalg_qr", "linalg.qr", "A", "geqrf_cuda"),
    ("_linalg_eigh", "", "A", "linalg_eigh_cuda"),
    ("linalg_matrix_exp", "linalg.matrix_exp", "self", None),
    ("linalg_inv_ex", "linalg.inv", "A", None),
):
    checks(f"aten::{_operator}")(_decomposition(_name, _argument, _needed))


@checks("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def _fft(call: Call) -> None:
    """`promote_type_fft` has refused most; cuFFT knows no bfloat16 (native/cuda/SpectralOps.cpp)."""
    dtype = call.tensor("self").dtype
    if dtype == torch.bfloat16:
        raise RuntimeError(f"cuFFT doesn't support tensor of type: {scalar_name(dtype)}")
    x, dims = call.tensor("self"), list(call["dim"])
    sizes = [x.shape[dim] for dim in dims]
    if call.operator == "aten::_fft_c2r":
        sizes[-1] = call["last_dim_size"]
    is_half = dtype in (torch.float16, torch.complex32)
    if is_half and any(size & (size - 1) for size in sizes):  # `CuFFTConfig` of CuFFTPlanCache.h
        raise RuntimeError(
            "cuFFT only supports dimensions whose sizes are powers of two when computing in half "
            f"precision, but got a signal size of{sizes}"
        )


# ------------------------------------------------------------------------- matrix products

_SELF_IS_MAT2 = "self and mat2 must have the same dtype, but got {} and {}"
_MAT1_IS_MAT2 = "mat1 and mat2 must have the same dtype, but got {} and {}"

checks("aten::mm")(
    same_dtype(
        "self",
        "mat2",
        "expected mat1 and mat2 to have the same dtype, but got: {} != {}",
        name=cpp_name,
    ),
    dispatches("addmm_cuda", "self", _BLAS),
)
checks("aten::addmm", "aten::addmm_", "aten::_addmm_activation")(
    same_dtype("self", "mat2", _SELF_IS_MAT2),
    same_dtype("mat1", "mat2", _MAT1_IS_MAT2),
    dispatches("addmm_cuda", "self", _BLAS),
)
checks("aten::addbmm", "aten::addbmm_")(  # `addbmm_impl_` calls `addmm` for each matrix
    same_dtype("self", "batch2", _SELF_IS_MAT2),
    same_dtype("batch1", "batch2", _MAT1_IS_MAT2),
    dispatches("addmm_cuda", "self", _BLAS),
)
checks("aten::bmm")(dispatches("baddbmm_cuda", "self", _BLAS, "mat2"))
# `_trilinear` of aten/src/ATen/native/Linear.cpp multiplies slices with `bmm`.
checks("aten::_trilinear")(dispatches("baddbmm_cuda", "i1", _BLAS))
# native/ConvolutionTBC.cpp: `addmm_` onto the output, to which the bias is copied.
checks("aten::conv_tbc")(
    same_dtype("self", "weight", _SELF_IS_MAT2), dispatches("addmm_cuda", "self", _BLAS)
)


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


for _operator, _other in (("dot", "tensor"), ("vdot", "other")):
    checks(f"aten::{_operator}")(
        same_dtype(
            "self",
            _other,
            "dot : expected both vectors to have same dtype, but found {} and {}",
        ),
        dispatches("dot", "self", _BLAS),
    )


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


# native/cuda/CrossKernel.cu: a TensorIterator without promotion
checks("aten::linalg_cross")(
    same_dtype("self", "other", "Found dtype {1} but expected {0}"),
    _refuses_bools("cross_cuda"),
)

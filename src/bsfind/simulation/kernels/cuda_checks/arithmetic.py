"""Arithmetic: native/BinaryOps.cpp, Lerp.cpp, ReduceOps.cpp, TensorFactories.cpp, BatchLinearAlgebra.cpp."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.kernels.cuda_checks.check import (
    Check,
    checks,
    cpp_name,
    implements,
    scalar_name,
    specs_of,
)

_REAL = (torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
_A_BOOL = (
    "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to "
    "invert a mask, use the `~` or `logical_not()` operator instead."
)
_TWO_BOOLS = (
    "Subtraction, the `-` operator, with two bool tensors is not supported. "
    "Use the `^` or `logical_xor()` operator instead."
)


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
        raise RuntimeError(_TWO_BOOLS if all(is_bool) else _A_BOOL)


def _is_bool(value: TensorSpec | float) -> bool:
    return value.dtype == torch.bool if isinstance(value, TensorSpec) else value is True


def _refuses_bools(kernel: str) -> Check:
    """Return the check of a kernel that has no version for operands that are all bools."""

    def check(call: Call) -> None:
        if all(spec.dtype == torch.bool for _, spec in specs_of(call)):
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
    """All of them clamp (native/Activation.cpp, native/cuda/Blas.cpp)."""
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
    if call.operator == "aten::div_" and not (common.is_floating_point or common.is_complex):
        common = torch.get_default_dtype()
    can_be_stored(common, target.dtype)


def _like(spec: TensorSpec) -> torch.Tensor:
    """Return a tensor that is promoted as one of this shape: single values give way."""
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
    if not (dtype.is_floating_point or dtype.is_complex):
        implements("lerp_cuda", dtype, ())


@checks("aten::std", "aten::var", "aten::std_mean", "aten::var_mean")
def _std(call: Call) -> None:
    dtype = call.tensor("self").dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        name = call.operator.removeprefix("aten::")
        name = name if name.endswith("_mean") else "std and var"
        raise RuntimeError(f"{name} only support floating point and complex dtypes")


@checks("aten::mean")
def _mean(call: Call) -> None:
    dtype = call["dtype"] or call.tensor("self").dtype
    if not (dtype.is_floating_point or dtype.is_complex):
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
    if common.is_floating_point or common.is_complex:
        implements(f"{call.operator.removeprefix('aten::')}_cuda", common, ())


def _decomposition(name: str, argument: str, kernel: str | None) -> Check:
    """Return the check of an operator of torch.linalg (`checkFloatingOrComplex`)."""

    def check(call: Call) -> None:
        dtype = call.tensor(argument).dtype
        if name and not (dtype.is_floating_point or dtype.is_complex):
            raise RuntimeError(
                f"{name}: Expected a floating point or complex tensor as input. "
                f"Got {scalar_name(dtype)}"
            )
        if kernel is not None:
            implements(kernel, dtype, (*_REAL, *_COMPLEX))

    return check


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


@checks("aten::_linalg_solve_ex")
def _solve(call: Call) -> None:
    left, right = call.tensor("A").dtype, call.tensor("B").dtype
    _decomposition("linalg.solve", "A", None)(call)
    if left != right:
        raise RuntimeError(
            "linalg.solve: Expected A and B to have the same dtype, but found A of type "
            f"{scalar_name(left)} and B of type {scalar_name(right)} instead"
        )
    implements("lu_factor_cusolver", left, (*_REAL, *_COMPLEX))


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

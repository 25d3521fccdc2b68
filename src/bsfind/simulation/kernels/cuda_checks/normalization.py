"""Norms: native/cuda/layer_norm_kernel.cu, Normalization.cu, native/cudnn/BatchNorm.cpp and others."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.kernels.cuda_checks import cudnn
from bsfind.simulation.kernels.cuda_checks.check import (
    HALVES,
    checks,
    dispatches,
    expects,
    implements,
    scalar_name,
    tensor_name,
)

checks("aten::native_layer_norm")(
    dispatches(
        "LayerNormKernelImpl", "input", {torch.float32, torch.float64, *HALVES}, "weight", "bias"
    )
)
checks("bsfind::_fused_rms_norm")(dispatches("LayerNormKernelImpl", "input"))


@checks("aten::native_group_norm")
def _group_norm(call: Call) -> None:
    """`native_group_norm` of group_norm.cpp; its check of mixed dtypes speaks of the CPU."""
    x, weight, bias = call.tensor("input"), call.maybe_tensor("weight"), call.maybe_tensor("bias")
    if _is_mixed(x, weight, bias):
        if any(t is not None and t.dtype != torch.float32 for t in (weight, bias)):
            raise RuntimeError("mixed dtype (CPU): expect parameter to have scalar type of Float")
        if x.dtype not in HALVES:
            raise RuntimeError("mixed dtype (CPU): all inputs must share same datatype.")
    implements("GroupNormKernelImpl", x.dtype)
    expects(x.dtype, weight)
    expects(x.dtype, bias)


def _is_mixed(x: TensorSpec, *parameters: TensorSpec | None) -> bool:
    """`is_mixed_type` of native/cpu/mixed_data_type.h: by the first parameter that there is."""
    first = next((parameter for parameter in parameters if parameter is not None), None)
    return first is not None and first.dtype != x.dtype


@checks("aten::cudnn_batch_norm")
def _cudnn_batch_norm(call: Call) -> None:
    x = call.tensor("input")
    if x.dtype != torch.float16:  # for which PyTorch chooses cuDNN with float32 weights only
        _same_types(call, ("input", "weight"))
    _same_types(call, ("weight", "bias", "running_mean", "running_var"))
    cudnn.describes(x.dtype)
    if x.dtype in (torch.int32, torch.int8, torch.uint8):
        raise RuntimeError(f"TensorDescriptor does not support {scalar_name(x.dtype)}")


def _same_types(call: Call, names: tuple[str, ...]) -> None:
    """`checkAllSameType` of aten/src/ATen/TensorUtils.cpp."""
    order = ("input", "weight", "bias", "running_mean", "running_var")
    first = call.tensor(names[0])
    for name in names[1:]:
        other = call.maybe_tensor(name)
        if other is not None and other.dtype != first.dtype:
            raise RuntimeError(
                f"Expected tensor for argument #{order.index(names[0]) + 1} '{names[0]}' to have "
                f"the same type as tensor for argument #{order.index(name) + 1} '{name}'; "
                f"but type {tensor_name(first)} does not equal {tensor_name(other)} "
                "(while checking arguments for cudnn_batch_norm)"
            )


@checks("aten::native_batch_norm")
def _native_batch_norm(call: Call) -> None:
    """`batch_norm_cuda`: each kernel dispatches on another tensor."""
    x, weight, bias = call.tensor("input"), call.maybe_tensor("weight"), call.maybe_tensor("bias")
    mean, variance = call.maybe_tensor("running_mean"), call.maybe_tensor("running_var")
    if call["training"]:
        implements("batch_norm_stats_cuda", x.dtype)
        if mean is not None:
            implements("batch_norm_update_stats_cuda", mean.dtype)
    elif variance is not None:
        implements("batch_norm_invert_std_cuda", variance.dtype)
    implements("batch_norm_elementwise_cuda", x.dtype)
    if _is_channels_last(x):
        dtype = _statistics_dtype(x, weight, bias)
        expects(dtype, bias)  # g++ evaluates arguments from the last to the first
        expects(dtype, weight)
        return
    _have_type(_statistics_dtype(x, weight, bias), {"weight": weight, "bias": bias})


@checks("aten::native_batch_norm_backward")
def _native_batch_norm_backward(call: Call) -> None:
    """`batch_norm_backward_cuda_template`, for which parameters or statistics need a reduction."""
    if not call["train"] and not any(call["output_mask"][1:]):
        return
    x, weight = call.tensor("input"), call.maybe_tensor("weight")
    mean, variance = call.maybe_tensor("running_mean"), call.maybe_tensor("running_var")
    if not _is_channels_last(x):
        dtype = _statistics_dtype(x, weight, mean)
        _have_type(dtype, {"weight": weight, "running_mean": mean, "running_var": variance})


def _statistics_dtype(x: TensorSpec, *parameters: TensorSpec | None) -> torch.dtype:
    """Return the dtype that a kernel reads parameters and statistics with."""
    is_accumulated = _is_mixed(x, *parameters) and x.dtype in HALVES
    return torch.float32 if is_accumulated else x.dtype


def _have_type(dtype: torch.dtype, tensors: dict[str, TensorSpec | None]) -> None:
    """`get_packed_accessor` of native/cuda/Normalization.cuh."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise RuntimeError(
                f"Expected {name} to have type {scalar_name(dtype)} "
                f"but got {scalar_name(tensor.dtype)}"
            )


def _is_channels_last(x: TensorSpec) -> bool:
    """`batch_norm_use_channels_last_kernels`."""
    return (
        x.is_contiguous(torch.channels_last)
        or x.is_contiguous(torch.channels_last_3d)
        or (x.is_contiguous() and x.stride[1] == 1)
    )

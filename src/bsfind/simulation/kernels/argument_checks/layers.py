"""Layers: activations, pooling, convolutions, normalization, recurrent layers and attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bsfind.simulation.kernels.argument_checks.registry import (
    FLOATING,
    HALVES,
    checks,
    cpp_name,
    dispatches,
    expects,
    implements,
    scalar_name,
    tensor_name,
)
from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.kernels.convolution_backend import output_memory_format
from bsfind.simulation.kernels.normalization import is_channels_last
from bsfind.workload.user_errors import stands_for_torch

_ANY_COMPLEX = FLOATING | {torch.complex64, torch.complex128}
_ANY_NUMBER = _ANY_COMPLEX | {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}

# Operators of one kernel, the name of the kernel in its message, and the dtypes that it is compiled
# for. They dispatch on the dtype of `self`.
_KERNELS: tuple[tuple[str, str, frozenset[torch.dtype]], ...] = (
    ("gelu", "GeluCUDAKernelImpl", FLOATING),
    ("silu", "silu_cuda", _ANY_COMPLEX),
    ("mish", "mish_cuda", FLOATING),
    ("elu celu", "elu_cuda", FLOATING),
    ("_prelu_kernel", "prelu_cuda", FLOATING),
    ("glu", "glu_cuda", FLOATING),
    ("leaky_relu", "leaky_relu_cuda", FLOATING),
    ("softplus", "softplus_cuda", FLOATING),
    ("hardswish", "hardswish_cuda", FLOATING),
    ("hardsigmoid", "hardsigmoid_cuda", FLOATING),
    ("hardshrink", "hardshrink_cuda", FLOATING),
    ("softshrink", "softshrink_check", FLOATING),
    ("log_sigmoid_forward", "log_sigmoid_forward_cuda", FLOATING),
    ("_softmax _safe_softmax _log_softmax", "host_softmax", FLOATING),
    ("max_pool2d_with_indices", "max_pool2d_with_indices_out_cuda_frame", FLOATING),
    ("max_pool3d_with_indices", "max_pool3d_with_indices_out_frame", FLOATING),
    ("avg_pool2d", "avg_pool2d_out_cuda_frame", FLOATING),
    ("avg_pool3d", "avg_pool3d_out_cuda", FLOATING),
    ("_adaptive_avg_pool2d", "adaptive_avg_pool2d_cuda", FLOATING),
    ("adaptive_max_pool2d", "adaptive_max_pool2d_cuda", FLOATING),
    ("upsample_bilinear2d", "upsample_bilinear2d_out_frame", FLOATING),
    ("upsample_bicubic2d", "upsample_bicubic2d_out_frame", FLOATING),
    (
        "upsample_nearest2d _upsample_nearest_exact2d",
        "upsample_nearest2d_out_frame",
        FLOATING | {torch.uint8},
    ),
    ("reflection_pad2d", "reflection_pad2d_out_template", _ANY_NUMBER),
    ("replication_pad2d", "replication_pad2d_cuda", _ANY_NUMBER),
    ("im2col", "im2col_out_cuda", _ANY_COMPLEX | {torch.bool}),
    ("col2im", "col2im_out_cuda", _ANY_COMPLEX | {torch.bool}),
)

for _operators, _kernel, _dtypes in _KERNELS:
    for _operator in _operators.split():
        checks(f"aten::{_operator}")(dispatches(_kernel, "self", _dtypes))
checks("aten::native_dropout")(dispatches("fused_dropout", "input"))
checks("aten::grid_sampler_2d")(dispatches("grid_sampler_2d_cuda", "input", FLOATING, "grid"))
checks("aten::grid_sampler_3d")(dispatches("grid_sampler_3d_cuda", "input", FLOATING, "grid"))


# ---------------------------------------------------------------------------- convolutions
# aten/src/ATen/native/Convolution.cpp, aten/src/ATen/cudnn/Descriptors.cpp and Types.cpp

_NAMED_BY_CUDNN = FLOATING | {torch.int32, torch.uint8, torch.int8}


def _describes(dtype: torch.dtype) -> None:
    """Refuse a dtype that cuDNN has no name for (`getCudnnDataTypeFromScalarType`)."""
    if dtype not in _NAMED_BY_CUDNN:
        raise RuntimeError(
            f"getCudnnDataTypeFromScalarType() not supported for {scalar_name(dtype)}"
        )


def _has_engines(dtype: torch.dtype) -> None:
    """Refuse integers, which cuDNN has a name but no engine for in PyTorch's layouts."""
    _describes(dtype)
    if dtype not in FLOATING:
        raise RuntimeError("GET was unable to find an engine to execute this computation")


@checks("aten::convolution", "aten::_convolution")
def _convolution(call: Call) -> None:
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.maybe_tensor("bias")
    if x.dtype.is_complex and weight.dtype.is_complex:
        return  # computed by convolutions of the real and the imaginary parts, which are checked
    if _is_depthwise(call, x, weight):
        _check_same_device(x, weight, bias)
        implements("conv_depthwise2d_forward_cuda", x.dtype)
        expects(x.dtype, weight)
        expects(x.dtype, bias)
        return
    _check_same_type(x, weight, "weight")
    if bias is not None:
        _check_same_type(x, bias, "bias")
    _has_engines(x.dtype)


def _check_same_type(x: TensorSpec, other: TensorSpec, name: str) -> None:
    """`check_input_same_type_as_parameters`."""
    if x.dtype == other.dtype and x.on_gpu == other.on_gpu:
        return
    text = (
        f"Input type ({tensor_name(x)}) and {name} type ({tensor_name(other)}) should be the same"
    )
    if not x.on_gpu:
        text += " or input should be a MKLDNN tensor and weight is a dense tensor"
    raise RuntimeError(text)


def _check_same_device(x: TensorSpec, weight: TensorSpec, bias: TensorSpec | None) -> None:
    """Refuse parameters that were left on the host, as the wrapper of the depthwise kernel does."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.on_gpu != x.on_gpu:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {name} is on cpu, "
                "different from other tensors on cuda:0 "
                "(when checking argument in method wrapper_CUDA___conv_depthwise2d)"
            )


def _is_depthwise(call: Call, x: TensorSpec, weight: TensorSpec) -> bool:
    """Return whether PyTorch's own kernel for depthwise convolutions of images runs."""
    return (
        x.on_gpu
        and not call["transposed"]
        and x.dim == 4
        and x.shape[1] == call["groups"] > 1
        and not x.dtype.is_complex
        and output_memory_format(x, weight) == torch.contiguous_format
    )


@checks("aten::convolution")
def _channels(call: Call) -> None:
    """`check_shape_forward` of native/Convolution.cpp; the meta kernel has another text, or no check."""
    x, weight = call.tensor("input"), call.tensor("weight")
    if call["transposed"]:
        kind, channels = "transposed=1", weight.shape[0]
    else:
        kind, channels = f"groups={call['groups']}", weight.shape[1] * call["groups"]
    if x.shape[1] != channels:
        raise RuntimeError(
            f"Given {kind}, weight of size {list(weight.shape)}, expected input{list(x.shape)} to have "
            f"{channels} channels, but got {x.shape[1]} channels instead"
        )


# --------------------------------------------------------------------------- normalization
# native/cuda/layer_norm_kernel.cu, Normalization.cu, native/cudnn/BatchNorm.cpp and others

checks("aten::native_layer_norm")(
    dispatches("LayerNormKernelImpl", "input", FLOATING, "weight", "bias")
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
    """`is_mixed_type` of native/cpu/mixed_data_type.h, by the first parameter that is present."""
    first = next((parameter for parameter in parameters if parameter is not None), None)
    return first is not None and first.dtype != x.dtype


@checks("aten::cudnn_batch_norm")
def _cudnn_batch_norm(call: Call) -> None:
    x = call.tensor("input")
    if x.dtype != torch.float16:  # for which PyTorch chooses cuDNN with float32 weights only
        _check_all_same_type(call, ("input", "weight"))
    _check_all_same_type(call, ("weight", "bias", "running_mean", "running_var"))
    _describes(x.dtype)
    if x.dtype in (torch.int32, torch.int8, torch.uint8):
        raise RuntimeError(f"TensorDescriptor does not support {scalar_name(x.dtype)}")


def _check_all_same_type(call: Call, names: tuple[str, ...]) -> None:
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
    if is_channels_last(x):
        dtype = _statistics_dtype(x, weight, bias)
        expects(dtype, bias)  # g++ evaluates arguments from the last to the first
        expects(dtype, weight)
        return
    _check_type(_statistics_dtype(x, weight, bias), {"weight": weight, "bias": bias})


@checks("aten::native_batch_norm_backward")
def _native_batch_norm_backward(call: Call) -> None:
    """`batch_norm_backward_cuda_template`, for which parameters or statistics need a reduction."""
    if not call["train"] and not any(call["output_mask"][1:]):
        return
    x, weight = call.tensor("input"), call.maybe_tensor("weight")
    mean, variance = call.maybe_tensor("running_mean"), call.maybe_tensor("running_var")
    if not is_channels_last(x):
        dtype = _statistics_dtype(x, weight, mean)
        _check_type(dtype, {"weight": weight, "running_mean": mean, "running_var": variance})


def _statistics_dtype(x: TensorSpec, *parameters: TensorSpec | None) -> torch.dtype:
    """Return the dtype that a kernel reads parameters and statistics with."""
    is_accumulated = _is_mixed(x, *parameters) and x.dtype in HALVES
    return torch.float32 if is_accumulated else x.dtype


def _check_type(dtype: torch.dtype, tensors: dict[str, TensorSpec | None]) -> None:
    """`get_packed_accessor` of native/cuda/Normalization.cuh."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise RuntimeError(
                f"Expected {name} to have type {scalar_name(dtype)} "
                f"but got {scalar_name(tensor.dtype)}"
            )


# ------------------------------------------------------------------------ recurrent layers
# aten/src/ATen/native/RNN.cpp, native/RNN.h and native/cuda/RNN.cu


@stands_for_torch
def check_devices_of_layer(
    x: Tensor, hidden: Sequence[Tensor | None], params: Sequence[Tensor]
) -> None:
    """Refuse states and parameters on another device than the input's (`check_attributes`).

    Raises:
        RuntimeError: a device differs; the text is PyTorch's.
    """
    for name, tensors in (("hidden", hidden), ("parameter", params)):
        for tensor in tensors:
            if tensor is not None and tensor.is_meta != x.is_meta:
                ours, theirs = ("cuda:0" if t.is_meta else "cpu" for t in (x, tensor))
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, "
                    f"found input tensor at {ours} and {name} tensor at {theirs}"
                )


@checks("aten::_cudnn_rnn")
def _layer(call: Call) -> None:
    """`check_attributes` with dtypes, of `_cudnn_rnn` (native/cudnn/RNN.cpp)."""
    _describes(call["weight"][0].dtype)
    x = call.tensor("input").dtype
    states = [call.maybe_tensor(name) for name in ("hx", "cx")]
    for name, tensors in (("hidden", states), ("parameter", call["weight"])):
        for tensor in tensors:
            if isinstance(tensor, TensorSpec) and tensor.dtype != x:
                raise RuntimeError(
                    f"Input and {name} tensors are not the same dtype, found input tensor with "
                    f"{scalar_name(x)} and {name} tensor with {scalar_name(tensor.dtype)}"
                )


for _cell, _state in (("lstm", "cx"), ("gru", "hx")):
    checks(f"aten::_thnn_fused_{_cell}_cell")(
        dispatches(
            f"_thnn_fused_{_cell}_cell_cuda",
            "input_gates",
            FLOATING,
            *("hidden_gates", "input_bias", "hidden_bias", _state),
        )
    )


# ------------------------------------------------------------------------------- attention
# `validate_sdpa_input` of aten/src/ATen/native/transformers/attention.cpp


@stands_for_torch
def validate_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Refuse tensors that `scaled_dot_product_attention` refuses before it chooses a backend.

    Raises:
        RuntimeError: dtypes or devices differ.
    """
    ours = query.dtype
    if not ours == key.dtype == value.dtype:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{cpp_name(ours)} key.dtype: {cpp_name(key.dtype)} and value.dtype: "
            f"{cpp_name(value.dtype)} instead."
        )
    if not query.is_meta == key.is_meta == value.is_meta:
        where = ["cuda:0" if tensor.is_meta else "cpu" for tensor in (query, key, value)]
        raise RuntimeError(
            "Expected query, key, and value to have the same device type, but got query.device: "
            f"{where[0]} key.device: {where[1]} and value.device: {where[2]} instead."
        )
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, ours):
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
            f"attn_mask.dtype: {cpp_name(mask.dtype)} and  query.dtype: {cpp_name(ours)} instead."
        )


@checks("aten::_scaled_dot_product_efficient_attention")
def _efficient(call: Call) -> None:
    """`_efficient_attention_forward` of native/transformers/cuda/attention.cu."""
    bias = call.maybe_tensor("attn_bias")
    if bias is not None and bias.dtype != call.tensor("query").dtype:
        raise RuntimeError("invalid dtype for bias - should match query's dtype")

"""Convolutions: aten/src/ATen/native/Convolution.cpp."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.kernels.convolution_backend import output_memory_format
from bsfind.simulation.kernels.cuda_checks import cudnn
from bsfind.simulation.kernels.cuda_checks.check import checks, expects, implements, tensor_name


@checks("aten::convolution", "aten::_convolution")
def _convolution(call: Call) -> None:
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.maybe_tensor("bias")
    if x.dtype.is_complex and weight.dtype.is_complex:
        return  # by convolutions of the real and the imaginary parts, which are checked themselves
    if _is_depthwise(call, x, weight):
        _same_devices(x, weight, bias)
        implements("conv_depthwise2d_forward_cuda", x.dtype)
        expects(x.dtype, weight)
        expects(x.dtype, bias)
        return
    _same_types(x, weight, "weight")
    if bias is not None:
        _same_types(x, bias, "bias")
    cudnn.has_engines(x.dtype)


def _same_types(x: TensorSpec, other: TensorSpec, name: str) -> None:
    """`check_input_same_type_as_parameters`."""
    if x.dtype == other.dtype and x.on_gpu == other.on_gpu:
        return
    text = (
        f"Input type ({tensor_name(x)}) and {name} type ({tensor_name(other)}) should be the same"
    )
    if not x.on_gpu:
        text += " or input should be a MKLDNN tensor and weight is a dense tensor"
    raise RuntimeError(text)


def _same_devices(x: TensorSpec, weight: TensorSpec, bias: TensorSpec | None) -> None:
    """Refuse parameters that were left on the host, as the wrapper of the depthwise kernel does."""
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.on_gpu != x.on_gpu:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {name} is on cpu, "
                "different from other tensors on cuda:0 "
                "(when checking argument in method wrapper_CUDA___conv_depthwise2d)"
            )


def _is_depthwise(call: Call, x: TensorSpec, weight: TensorSpec) -> bool:
    """Tell whether PyTorch's own kernel for depthwise convolutions of images runs."""
    return (
        x.on_gpu
        and not call["transposed"]
        and x.dim == 4
        and x.shape[1] == call["groups"] > 1
        and not x.dtype.is_complex
        and output_memory_format(x, weight) == torch.contiguous_format
    )


@checks("aten::convolution")
def _channels_of_transposed(call: Call) -> None:
    """`check_shape_forward` of native/Convolution.cpp, which the meta kernel makes of others only."""
    x, weight = call.tensor("input"), call.tensor("weight")
    if call["transposed"] and x.shape[1] != weight.shape[0]:
        raise RuntimeError(
            f"Given transposed=1, weight of size {list(weight.shape)}, expected "
            f"input{list(x.shape)} to have {weight.shape[0]} channels, "
            f"but got {x.shape[1]} channels instead"
        )

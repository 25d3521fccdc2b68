"""Which implementation PyTorch chooses for a convolution on CUDA (`_select_conv_backend`).

Models aten/src/ATen/native/Convolution.cpp and ConvUtils.h of torch 2.13 with cuDNN 9.20.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, TensorSpec
from bsfind.simulation.kernels.layouts import suggested_format

_INT_MAX = 2**31 - 1


class Backend(enum.Enum):
    """An implementation of convolutions on CUDA (`ConvBackend`)."""

    CUDNN = "cudnn"
    CUDNN_TRANSPOSE = "cudnn_transpose"
    DEPTHWISE_2D = "depthwise_2d"
    DEPTHWISE_3D = "depthwise_3d"
    EMPTY = "empty"
    SLOW_2D = "slow_2d"
    SLOW_DILATED = "slow_dilated"
    SLOW_TRANSPOSE_2D = "slow_transpose_2d"
    SLOW_TRANSPOSE_3D = "slow_transpose_3d"


def output_memory_format(input: TensorSpec, weight: TensorSpec) -> torch.memory_format:
    """Return the memory format of cuDNN's output (`cudnn_conv_suggest_memory_format`).

    For the gradient of the input, PyTorch passes the gradient of the output in place of the input;
    for the gradient of the weight, the input and the gradient of the output.
    """
    if torch.float64 in (input.dtype, weight.dtype) or weight.dim not in (4, 5):
        return torch.contiguous_format
    last = torch.channels_last if weight.dim == 4 else torch.channels_last_3d
    if last in (suggested_format(input), suggested_format(weight)):
        return last
    return torch.contiguous_format


def view_as_2d(spec: TensorSpec) -> TensorSpec:
    """Return a tensor (N, C, L) as (N, C, 1, L), like `unsqueeze(2)`."""
    n, c, length = spec.shape
    return replace(
        spec,
        shape=(n, c, 1, length),
        stride=(*spec.stride[:2], length * spec.stride[2], spec.stride[2]),
    )


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """The numbers of a convolution with two or three dimensions of space.

    Attributes:
        stride: one number per dimension of space, like the next three.
        padding: padding of each side of the input.
        dilation: distance between the elements of the kernel.
        output_padding: what is added to one side of the output of a transposed convolution.
        transposed: whether it is a transposed convolution.
        groups: number of groups of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    groups: int

    @classmethod
    def of(cls, call: Call, dimensions: int) -> Convolution:
        """Read the arguments of `convolution` or `convolution_backward`; one dimension becomes two."""

        def numbers(name: str, before: int) -> tuple[int, ...]:
            values = call[name]
            values = [values] if isinstance(values, int) else list(values)
            if len(values) == 1:  # `expand_param_if_needed`
                values *= dimensions
            return (before, *values) if dimensions == 1 else tuple(values)

        return cls(
            stride=numbers("stride", 1),
            padding=numbers("padding", 0),
            dilation=numbers("dilation", 1),
            output_padding=numbers("output_padding", 0),
            transposed=bool(call["transposed"]),
            groups=int(call["groups"]),
        )

    @property
    def is_dilated(self) -> bool:
        """Whether the kernel has holes."""
        return any(number != 1 for number in self.dilation)

    @property
    def is_output_padding_big(self) -> bool:
        """Whether the output padding reaches a stride, which cuDNN does not support."""
        return any(
            padding >= stride
            for padding, stride in zip(self.output_padding, self.stride, strict=True)
        )


def select_backend(
    input: TensorSpec, weight: TensorSpec, convolution: Convolution, gpu: GpuSpec, cudnn: bool
) -> Backend:
    """Return the implementation that PyTorch chooses.

    Args:
        input: (N, C, *space) with two or three dimensions of space.
        weight: (K, C / groups, *kernel).
        convolution: stride, padding and so on.
        gpu: the GPU that runs the kernel.
        cudnn: `torch.backends.cudnn.enabled`.
    """
    if 0 in input.shape[:2]:
        return Backend.EMPTY
    if _is_depthwise(input, weight, convolution):
        if cudnn and _uses_cudnn_depthwise(input, weight, convolution, gpu):
            return Backend.CUDNN
        return Backend.DEPTHWISE_2D if input.dim == 4 else Backend.DEPTHWISE_3D
    if cudnn and _uses_cudnn(input, weight, convolution, gpu):
        return Backend.CUDNN_TRANSPOSE if convolution.transposed else Backend.CUDNN
    if convolution.transposed:
        return Backend.SLOW_TRANSPOSE_2D if input.dim == 4 else Backend.SLOW_TRANSPOSE_3D
    if input.dim == 4 and not convolution.is_dilated:
        return Backend.SLOW_2D
    return Backend.SLOW_DILATED


def _is_depthwise(input: TensorSpec, weight: TensorSpec, convolution: Convolution) -> bool:
    channels = input.shape[1]
    return (
        not convolution.transposed
        and channels == convolution.groups > 1
        and weight.shape[0] % channels == 0
    )


def _uses_cudnn(
    input: TensorSpec, weight: TensorSpec, convolution: Convolution, gpu: GpuSpec
) -> bool:
    """Return what `ConvParams::use_cudnn` does.

    Not modelled: PyTorch does not use cuDNN 9.8 to 9.14, which some wheels before torch 2.13 have,
    for contiguous 16-bit tensors with three dimensions of space.
    """
    bfloat16 = torch.bfloat16 in (input.dtype, weight.dtype)
    if bfloat16 and gpu.capability < (8, 0):  # `supportsBFloat16ConvolutionWithCuDNNv8`
        return False
    return not convolution.is_output_padding_big


def _uses_cudnn_depthwise(
    input: TensorSpec, weight: TensorSpec, convolution: Convolution, gpu: GpuSpec
) -> bool:
    """Return what `ConvParams::use_cudnn_depthwise` does."""
    channels_last = output_memory_format(input, weight) != torch.contiguous_format
    if not (_fits_32_bit(input) and _fits_32_bit(weight)):
        return not channels_last  # cuDNN since 9.11 has a bug there
    if channels_last:
        return True
    return (
        _uses_cudnn(input, weight, convolution, gpu)
        and input.dtype == torch.float16 == weight.dtype
        and input.dim == 4
        and not convolution.is_dilated
        and (convolution.stride[0] == convolution.stride[1] or input.shape[2] == 1)
        and input.shape[1] >= 32
        and _is_fast_in_cudnn(input.shape, weight.shape, convolution.stride[1])
    )


def _is_fast_in_cudnn(shape: Sequence[int], weight: Sequence[int], stride: int) -> bool:
    """Return what `check_cudnn_depthwise_workload_with_filter` does."""
    batch, channels, height, width = shape
    if height == 1 and stride == 1:
        return True
    kernel = weight[3]
    if weight[2] != kernel or kernel not in (1, 3, 5) or width < 7:
        return False
    if stride != 2:
        return stride == 1
    if batch == 1:
        return kernel != 1 or width <= 28
    if kernel == 1:
        return batch <= 16 and channels >= 128 and width <= 7
    return channels >= 512 or (channels >= 256 and width >= 28)


def _fits_32_bit(spec: TensorSpec) -> bool:
    """Return what `canUse32BitIndexMath` does."""
    last = sum((size - 1) * stride for size, stride in zip(spec.shape, spec.stride, strict=True))
    return math.prod(spec.shape) < _INT_MAX and last + 1 <= _INT_MAX

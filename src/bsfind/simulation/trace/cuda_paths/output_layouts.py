"""Outputs of kernels as CUDA makes them, where meta's have other strides or are lacking.

The strides of a gradient decide what the next kernel copies: a model in channels-last format that is trained
with a squared error gets a contiguous gradient, which its last convolution brings into its own format.
Torch's meta kernels in Python follow the strides of the first tensor in a formula (torch/_decomp,
torch 2.6-2.14).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.layouts import elementwise
from bsfind.simulation.trace.calls import spec_of


def like(
    position: int, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[..., Tensor]:
    """Return a meta kernel whose output is like the argument at a position."""
    return lambda *args, **_: torch.empty_like(args[position], memory_format=memory_format)


def elementwise_of(first: int, second: int) -> Callable[..., Tensor]:
    """Return a meta kernel whose output is that of a `TensorIterator` of the arguments at two positions.

    It has the dtype of the first one.
    """

    def kernel(*args: Any, **_: Any) -> Tensor:
        spec = elementwise(spec_of(args[first]), spec_of(args[second]))
        return torch.empty_strided(
            spec.shape, spec.stride, dtype=spec.dtype, device=args[first].device
        )

    return kernel


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """`log_sigmoid_forward_cuda`: the buffer is the CPU's."""
    return torch.empty_like(x), x.new_empty(0)


def _log_softmax_backward(
    grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype
) -> Tensor:
    """`_log_softmax_backward_data` of aten/src/ATen/native/SoftMax.cpp: contiguous."""
    return grad.new_empty(grad.shape, dtype=input_dtype)


def _cudnn_grid_sampler(x: Tensor, grid: Tensor) -> Tensor:
    """`cudnn_grid_sampler_forward` of aten/src/ATen/native/cudnn/GridSampler.cpp."""
    return x.new_empty((x.shape[0], x.shape[1], grid.shape[1], grid.shape[2]))


def _cudnn_grid_sampler_backward(x: Tensor, grid: Tensor, _grad: Tensor) -> tuple[Tensor, Tensor]:
    """`cudnn_grid_sampler_backward` of aten/src/ATen/native/cudnn/GridSampler.cpp."""
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(grid, memory_format=contiguous),
    )


def _binary_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """`binary_cross_entropy_cuda` of aten/src/ATen/native/cuda/Loss.cu: the losses are like the input."""
    return torch.empty_like(x) if reduction == 0 else x.new_empty(())


def _pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """`math_pixel_unshuffle` of aten/src/ATen/native/PixelShuffle.cpp: a copy in the default format."""
    *batch, channels, height, width = x.shape
    return x.new_empty((*batch, channels * factor**2, height // factor, width // factor))


META_KERNELS: dict[str, Callable[..., Any]] = {
    "log_sigmoid_forward": _log_sigmoid_forward,
    "_log_softmax_backward_data": _log_softmax_backward,
    "cudnn_grid_sampler": _cudnn_grid_sampler,
    "cudnn_grid_sampler_backward": _cudnn_grid_sampler_backward,
    "binary_cross_entropy": _binary_cross_entropy,
    "binary_cross_entropy_backward": like(1, torch.preserve_format),
    "rrelu_with_noise": like(0),  # `rrelu_with_noise_cuda` of cuda/RreluWithNoise.cu
    "pixel_unshuffle": _pixel_unshuffle,
    # Contiguous gradients: native/Loss.cpp (`zeros_like`), native/GatedLinearUnit.cpp (`resize_as_`).
    **dict.fromkeys(
        ("mse_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward", "glu_backward"),
        like(1),
    ),
    # native/Activation.cpp: iterators of the gradient and, after it, the input.
    **dict.fromkeys(
        ("hardswish_backward", "hardsigmoid_backward", "softplus_backward", "hardtanh_backward"),
        elementwise_of(0, 1),
    ),
    "elu_backward": elementwise_of(0, 5),
    "logit_backward": elementwise_of(0, 1),  # native/BinaryOps.cpp
    # CUDA has kernels for these gradients, and meta tensors have none.
    "multi_margin_loss_backward": like(1),
    "multilabel_margin_loss_backward": like(1),
    "fractional_max_pool3d_backward": like(1),  # cuda/FractionalMaxPool3d.cu
    "_logcumsumexp": like(0),  # `_logcumsumexp_cuda` of cuda/ScanKernels.cpp
    "_ctc_loss_backward": like(1),  # `ctc_loss_backward_gpu` of cuda/LossCTC.cu
    "_ctc_loss_backward.Tensor": like(1),
    # The samplers of cuda/Distributions.cpp, and their gradients.
    **dict.fromkeys(
        ("_sample_dirichlet", "_dirichlet_grad", "_standard_gamma_grad", "binomial"),
        like(0, torch.preserve_format),
    ),
}
"""The kernels by `name` or `name.overload` of the operator."""

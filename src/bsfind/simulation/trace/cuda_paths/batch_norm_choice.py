"""Which kernel `batch_norm` runs on CUDA, and outputs as CUDA's kernels shape them.

The operator is a composite that asks the device (`_batch_norm_impl_index` and
`_select_batch_norm_backend` in aten/src/ATen/native/Normalization.cpp, torch 2.6-2.13). A tensor of
the meta device always gets the native kernel; CUDA gives most of them to cuDNN, which keeps other
statistics and wants contiguous gradients. `instance_norm` is a `batch_norm` of more channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.trace.torch_private import suggested_format
from bsfind.workload.user_errors import stands_for_torch

aten = torch.ops.aten


def runs_on_cudnn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
) -> bool:
    """Tell whether CUDA gives a batch norm to cuDNN (`_select_batch_norm_backend`)."""
    if weight is None or bias is None or not torch.backends.cudnn.enabled:
        return False
    if torch.bfloat16 in (x.dtype, weight.dtype):
        return False
    if x.dtype == torch.float16 and weight.dtype != torch.float32:
        return False
    has_statistics = running_mean is not None and running_var is not None
    if not has_statistics and not (training and running_mean is None and running_var is None):
        return False
    largest = 880801 if training else 65535
    return x.dim() >= 3 and x.shape[0] <= largest and x.numel() < 2**31 - 1


def _suggested_format(x: Tensor) -> torch.memory_format:
    """`suggest_memory_format` of c10/core/TensorImpl.h."""
    if x.dim() == 4 and suggested_format(x) == torch.channels_last:
        return torch.channels_last
    if x.dim() == 5 and suggested_format(x) == torch.channels_last_3d:
        return torch.channels_last_3d
    return torch.contiguous_format


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """`batch_norm` for CUDA; the composite ignores `cudnn_enabled` and asks the context."""
    out: Tensor
    if x.numel() == 0:
        out = x.clone()  # keeps the gradients' chain
        if weight is not None:
            out = out * weight[0]
        return out if bias is None else out + bias[0]
    statistics = (running_mean, running_var)
    _check_channels(x, running_mean, running_var, weight, bias)
    if runs_on_cudnn(x, weight, bias, *statistics, training):
        assert weight is not None
        assert bias is not None
        out = aten.cudnn_batch_norm.default(
            x.contiguous(memory_format=_suggested_format(x)),
            *(weight.contiguous(), bias.contiguous()),
            *(None if tensor is None else tensor.contiguous() for tensor in statistics),
            *(training, momentum, eps),
        )[0]
        return out
    out = aten.native_batch_norm.default(x, weight, bias, *statistics, training, momentum, eps)[0]
    return out


@stands_for_torch
def _check_channels(x: Tensor, *tensors: Tensor | None) -> None:
    """Refuse statistics and parameters of another number of channels (`_batch_norm_impl_index`).

    Args:
        x: the input.
        tensors: `running_mean`, `running_var`, `weight`, `bias`.
    """
    for name, tensor in zip(
        ("running_mean", "running_var", "weight", "bias"), tensors, strict=True
    ):
        if tensor is not None and tensor.numel() != x.shape[1]:
            raise RuntimeError(f"{name} should contain {x.shape[1]} elements not {tensor.numel()}")


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """`at::toAccumulateType` for CUDA."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _cudnn_forward(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`cudnn_batch_norm` of aten/src/ATen/native/cudnn/BatchNorm.cpp.

    The decomposition that meta tensors have makes a dozen tensors, and statistics where there are
    none in evaluation mode. cuDNN's reserve is empty for a batch norm that is not fused with an
    activation; it is taken to be so in all layouts.
    """
    _bias, _running_mean, _running_var, training, _momentum, _eps = rest
    channels = x.shape[1] if training else 0
    return (
        torch.empty_like(x, memory_format=_suggested_format(x)),
        *(weight.new_empty(channels), weight.new_empty(channels)),
        x.new_empty(0, dtype=torch.uint8),
    )


def _cudnn_backward(
    x: Tensor, _grad: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`cudnn_batch_norm_backward` of aten/src/ATen/native/cudnn/BatchNorm.cpp."""
    return (
        torch.empty_like(x, memory_format=_suggested_format(x)),
        *(torch.empty_like(weight), torch.empty_like(weight)),
    )


def _native_forward(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_norm_cuda` of aten/src/ATen/native/cuda/Normalization.cu."""
    dtype = _accumulator(x.dtype)
    channels = x.shape[1]
    return (
        torch.empty_like(x),
        *(x.new_empty(channels, dtype=dtype), x.new_empty(channels, dtype=dtype)),
    )


def _native_backward(
    _grad: Tensor, x: Tensor, weight: Tensor | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`batch_norm_backward_cuda` of aten/src/ATen/native/cuda/Normalization.cu.

    The gradient of the input is contiguous in evaluation and where one kernel does all; else it has
    the layout of the input.
    """
    *_statistics, training, _eps, output_mask = rest
    is_channels_last = x.is_contiguous() and x.stride(1) == 1
    if x.dim() in (4, 5):
        memory_format = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        is_channels_last = is_channels_last or x.is_contiguous(memory_format=memory_format)
    grad_x = None
    if output_mask[0]:
        keeps_layout = training and is_channels_last
        grad_x = torch.empty_like(x) if keeps_layout else x.new_empty(x.shape)
    like = x if weight is None else weight
    dtype = _accumulator(x.dtype) if weight is None else weight.dtype
    grad_weight, grad_bias = (
        like.new_empty(x.shape[1], dtype=dtype) if mask else None for mask in output_mask[1:]
    )
    return grad_x, grad_weight, grad_bias


KERNELS: dict[str, Callable[..., Any]] = {"batch_norm": _batch_norm}
"""By the operators' names, each called with the operator's arguments."""

META_KERNELS: dict[str, Callable[..., Any]] = {
    "cudnn_batch_norm": _cudnn_forward,
    "cudnn_batch_norm_backward": _cudnn_backward,
    "native_batch_norm": _native_forward,
    "native_batch_norm_backward": _native_backward,
}
"""Kernels that make the outputs as CUDA's do."""

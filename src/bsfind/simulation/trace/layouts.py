"""Outputs of convolutions, whose memory format is another on CUDA than torch's meta kernels say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bsfind.simulation.kernels.convolution_backend import output_memory_format
from bsfind.simulation.trace.calls import spec_of

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts

from bsfind.simulation.trace.torch_private import (
    current_backward,
    current_node,
)


def layout_handlers() -> dict[str, Handler]:
    """Return the handlers of convolutions, forward and backward."""
    return {
        "aten::convolution": _convolution,
        "aten::convolution_backward": _convolution_backward,
    }


def _convolution(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if _is_double_backward():
        args = (args[0], args[1].contiguous(), *args[2:])
    memory_format = _format(args[0], args[1])
    return dispatcher.run(facts, args, kwargs, lambda out: _in_format(out, memory_format))


def _convolution_backward(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    # The gradient of the output is brought into the input's format first, whatever it came in
    # (`cudnn_convolution_backward` in aten/src/ATen/native/cudnn/ConvShared.cpp, torch 2.6-2.13),
    # and kernels without cuDNN make it contiguous.
    memory_format = _format(args[1], args[2])

    def adjusted(out: Any) -> Any:
        grad_input, grad_weight, grad_bias = out
        return (
            _in_format(grad_input, memory_format),
            _in_format(grad_weight, memory_format),
            grad_bias,
        )

    return dispatcher.run(facts, args, kwargs, adjusted)


def _is_double_backward() -> bool:
    """Tell whether a convolution is part of the gradient of a convolution's gradient.

    There, CUDA's are made of contiguous weights, and `is_cuda` is asked, not the disguise
    (`_convolution_double_backward` of aten/src/ATen/native/Convolution.cpp, torch 2.6-2.13).
    """
    if current_backward() == -1:
        return False
    node = current_node()
    return bool(node.name() == "ConvolutionBackwardBackward0")


def _format(input: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    return output_memory_format(spec_of(input), spec_of(weight))


def _in_format(tensor: Any, memory_format: torch.memory_format) -> Any:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_meta or tensor.dim() < 4:
        return tensor
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return torch.empty_like(tensor, memory_format=memory_format)

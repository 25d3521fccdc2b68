"""The outputs of cuDNN's recurrent layers and of the fused cells, for meta tensors.

PyTorch's own meta kernels lack the reserve that cuDNN keeps for the backward pass, and some are
lacking altogether (torch 2.6-2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.recurrent import (
    MODES,
    RecurrentShape,
    cudnn_dropout_state_bytes,
    temporary_bytes,
)


def parameters_in(
    buffer: Tensor, shape: RecurrentShape, has_biases: bool
) -> list[tuple[Tensor, ...]]:
    """Return the parameters as parts of a flat buffer, by layer and direction.

    They are tensors of their own on the same storage, not views that autograd would follow
    (`get_parameters` of aten/src/ATen/native/cudnn/RNN.cpp).
    """
    groups = []
    for index, offsets in enumerate(shape.offsets()):
        of_input, of_state, of_projection = shape.layer_weights(index // shape.directions)
        rows = shape.layer_bias
        sizes: list[tuple[int, ...]] = [(rows, of_input // rows), (rows, of_state // rows)]
        places = list(offsets[:2])
        if has_biases:
            sizes += [(rows,), (rows,)]
            places += offsets[2:4]
        if of_projection:
            sizes.append((shape.proj_size, shape.hidden_size))
            places.append(offsets[4])
        storage = buffer.untyped_storage()
        groups.append(
            tuple(
                torch.empty(0, dtype=buffer.dtype, device=buffer.device).set_(
                    storage, place, size, (size[1], 1) if len(size) == 2 else (1,)
                )
                for place, size in zip(places, sizes, strict=True)
            )
        )
    return groups


def _cudnn_rnn(
    x: Tensor,
    weight: Sequence[Tensor],
    weight_stride0: int,
    weight_buf: Tensor | None,
    hx: Tensor,
    cx: Tensor | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `_cudnn_rnn`: PyTorch's own meta kernel has no reserve."""
    directions = 2 if bidirectional else 1
    if batch_sizes:
        length, batch = len(batch_sizes), batch_sizes[0]
    else:
        batch, length = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    shape = RecurrentShape(
        mode=MODES[mode],
        input_size=x.shape[-1],
        hidden_size=hidden_size,
        proj_size=proj_size,
        layers=num_layers,
        directions=directions,
        length=length,
        batch=batch,
        element_size=x.element_size(),
        is_training=train,
    )
    features = shape.output_size * directions
    if batch_sizes:
        out = x.new_empty((x.shape[0], features))
    else:
        out = x.new_empty((length, batch, features))
        out = out.transpose(0, 1) if batch_first else out
    states = num_layers * directions
    hy = hx.new_empty((states, batch, shape.output_size))
    cy = hx.new_empty(0) if cx is None else cx.new_empty((states, batch, hidden_size))
    reserve = x.new_empty(temporary_bytes(shape)[1], dtype=torch.uint8)
    if weight_buf is None:
        weight_buf = x.new_empty(shape.weight_elements)
    return out, hy, cy, reserve, weight_buf


def _cudnn_rnn_backward(
    x: Tensor,
    weight: Sequence[Tensor],
    weight_stride0: int,
    weight_buf: Tensor,
    hx: Tensor,
    cx: Tensor | None,
    output: Tensor,
    grad_output: Tensor | None,
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    mode: int,
    hidden_size: int,
    proj_size: int,
    num_layers: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: Tensor | None,
    reserve: Tensor,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor]]:
    """The outputs of `_cudnn_rnn_backward`, which has no meta kernel in PyTorch."""
    is_transposed = batch_first and not batch_sizes
    grad_x = x.new_empty((x.shape[1], x.shape[0], x.shape[2]) if is_transposed else x.shape)
    grad_x = grad_x.transpose(0, 1) if is_transposed else grad_x
    grad_cx = None if cx is None else torch.empty_like(cx)
    grad_hx = torch.empty_like(hx)
    if not output_mask[3]:
        return grad_x, grad_hx, grad_cx, []
    if weight_stride0 < 4:  # without biases the gradients are copied out of the flat buffer
        return grad_x, grad_hx, grad_cx, [torch.empty_like(tensor) for tensor in weight]
    shape = RecurrentShape(
        mode=MODES[mode],
        input_size=x.shape[-1],
        hidden_size=hidden_size,
        proj_size=proj_size,
        layers=num_layers,
        directions=2 if bidirectional else 1,
    )
    flat = torch.empty_like(weight_buf)
    parts = [part for group in parameters_in(flat, shape, True) for part in group]
    grads = [part.view(like.shape) for part, like in zip(parts, weight, strict=True)]
    return grad_x, grad_hx, grad_cx, grads


def _fused_lstm_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    cx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_thnn_fused_lstm_cell_cuda`: the new states, and the gates."""
    contiguous = torch.contiguous_format
    hy = torch.empty_like(cx, memory_format=contiguous)
    cy = torch.empty_like(cx, memory_format=contiguous)
    return hy, cy, torch.empty_like(input_gates, memory_format=contiguous)


def _fused_lstm_cell_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`_thnn_fused_lstm_cell_backward_impl_cuda`."""
    if grad_hy is None and grad_cy is None:
        return None, None, None
    contiguous = torch.contiguous_format
    gates = torch.empty_like(workspace, memory_format=contiguous)
    grad_bias = gates.new_empty(gates.shape[1]) if has_bias else None
    return gates, torch.empty_like(cx, memory_format=contiguous), grad_bias


def _fused_gru_cell(
    input_gates: Tensor,
    hidden_gates: Tensor,
    hx: Tensor,
    input_bias: Tensor | None = None,
    hidden_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`_thnn_fused_gru_cell_cuda`: the new state, and five numbers for each of its elements."""
    contiguous = torch.contiguous_format
    workspace = hx.new_empty((hx.shape[0], hx.shape[1] * 5))
    return torch.empty_like(hx, memory_format=contiguous), workspace


def _fused_gru_cell_backward(
    grad_hy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """`_thnn_fused_gru_cell_backward_cuda`."""
    gates = (workspace.shape[0], workspace.shape[1] // 5 * 3)
    grads = [workspace.new_empty(gates), workspace.new_empty(gates)]
    biases = [workspace.new_empty(gates[1]) if has_bias else None for _ in range(2)]
    grad_hx = torch.empty_like(grad_hy, memory_format=torch.contiguous_format)
    return grads[0], grads[1], grad_hx, biases[0], biases[1]


def meta_kernels(gpu: GpuSpec) -> dict[str, Callable[..., Any]]:
    """Return kernels that make the outputs as CUDA's do, where meta's are other or lacking."""

    def dropout_state(*_: Any, **__: Any) -> Tensor:
        return torch.empty(cudnn_dropout_state_bytes(gpu), dtype=torch.uint8, device="meta")

    return {
        "_cudnn_rnn": _cudnn_rnn,
        "_cudnn_rnn_backward": _cudnn_rnn_backward,
        "_thnn_fused_lstm_cell": _fused_lstm_cell,
        "_thnn_fused_lstm_cell_backward_impl": _fused_lstm_cell_backward,
        "_thnn_fused_gru_cell": _fused_gru_cell,
        "_thnn_fused_gru_cell_backward": _fused_gru_cell_backward,
        "_cudnn_init_dropout_state": dropout_state,
    }

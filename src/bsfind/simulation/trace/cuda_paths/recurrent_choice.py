"""Recurrent layers as CUDA runs them: through cuDNN, with all weights in one flat buffer.

`lstm`, `gru` and `rnn_*` are composites that ask the device (aten/src/ATen/native/RNN.cpp, torch
2.6-2.13). For meta tensors they would unroll into the operators of each step; cuDNN keeps a reserve
instead, which PyTorch's own meta kernels lack. Cells have fused kernels on CUDA
(aten/src/ATen/native/cuda/RNN.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsfind.simulation.kernels.argument_checks.layers import check_devices_of_layer
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.recurrent import (
    MODES,
    RecurrentShape,
    cudnn_dropout_state_bytes,
    temporary_bytes,
)
from bsfind.simulation.trace.torch_private import (
    AUTOCAST_CUDA_KEYS,
    ExcludedKeys,
    address_of,
    flat_weights,
    flat_weights_names,
)
from bsfind.workload.user_errors import stands_for_torch

aten = torch.ops.aten

_CUDNN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_CONTIGUOUS = torch.contiguous_format


class _RnnCall(NamedTuple):
    """The arguments of `_cudnn_rnn`, in the order of its schema.

    Attributes:
        x: input, (length, batch, features), or (batch, length, features) with `batch_first`, or
            packed, (elements, features).
        weight: parameters by layer and direction, `weight_stride` of each.
        buffer: flat buffer that the parameters lie in; None: they lie elsewhere.
        hx: hidden state, (layers * directions, batch, features).
        cx: cell state of an LSTM.
        mode: index in `MODES`.
        hidden_size, proj_size: features of a state, and of a projected one (0: no projection).
        batch_sizes: sequences that have each step; empty: the input is not packed.
        dropout_state: state of cuDNN's dropout.
    """

    x: Tensor
    weight: Sequence[Tensor]
    weight_stride: int
    buffer: Tensor | None
    hx: Tensor
    cx: Tensor | None
    mode: int
    hidden_size: int
    proj_size: int
    layers: int
    batch_first: bool
    dropout: float
    train: bool
    bidirectional: bool
    batch_sizes: Sequence[int]
    dropout_state: Tensor | None

    @property
    def shape(self) -> RecurrentShape:
        """The network as cuDNN's descriptors have it."""
        if self.batch_sizes:
            length, batch = len(self.batch_sizes), self.batch_sizes[0]
        else:
            batch, length = self.x.shape[:2] if self.batch_first else self.x.shape[1::-1]
        return RecurrentShape(
            mode=MODES[self.mode],
            input_size=self.x.shape[-1],
            hidden_size=self.hidden_size,
            proj_size=self.proj_size,
            layers=self.layers,
            directions=2 if self.bidirectional else 1,
            length=length,
            batch=batch,
            element_size=self.x.element_size(),
            is_training=self.train,
        )


def _parameters_in(buffer: Tensor, shape: RecurrentShape, has_biases: bool) -> list[Tensor]:
    """Return the parameters as parts of a flat buffer, by layer and direction.

    They are tensors of their own on the same storage, not views that autograd would follow
    (`get_parameters` of aten/src/ATen/native/cudnn/RNN.cpp).
    """
    parts = []
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
        for place, size in zip(places, sizes, strict=True):
            part = torch.empty(0, dtype=buffer.dtype, device=buffer.device)
            stride = (size[1], 1) if len(size) == 2 else (1,)
            parts.append(part.set_(buffer.untyped_storage(), place, size, stride))
    return parts


def _buffer_of(params: Sequence[Tensor], shape: RecurrentShape) -> Tensor | None:
    """Return the buffer that the parameters lie in as cuDNN wants them (`try_get_weight_buf`)."""
    first = params[0]
    storage = first.untyped_storage()
    count = shape.weight_elements
    if storage.nbytes() < count * first.element_size() or not params[-1].is_contiguous():
        return None
    per_layer = len(params) // (shape.layers * shape.directions)
    has_biases = per_layer >= 4
    for index, offsets in enumerate(shape.offsets()):
        expected = offsets if has_biases else (*offsets[:2], *offsets[4:])
        group = params[index * per_layer : (index + 1) * per_layer]
        for param, offset in zip(group, expected, strict=True):
            is_same = address_of(param.untyped_storage()) == address_of(storage)
            if not is_same or param.storage_offset() != offset:
                return None
    return torch.empty(0, dtype=first.dtype, device=first.device).set_(storage, 0, (count,), (1,))


# ----------------------------------------------------------------------------------- the layers


class RecurrentLayers:
    """The composites of recurrent layers, with the state that cuDNN's dropout keeps."""

    def __init__(self) -> None:
        self._dropout_state: Tensor | None = None

    def _state_of_dropout(self, x: Tensor, dropout: float, train: bool) -> Tensor | None:
        """`get_dropout_state`: made when first needed, and kept."""
        if train and dropout > 0 and self._dropout_state is None:
            torch.empty((), dtype=torch.long, device=x.device).random_()  # the seed
            self._dropout_state = aten._cudnn_init_dropout_state.default(
                dropout, train, 0, dtype=torch.uint8, device=x.device
            )
        return self._dropout_state

    def forget(self) -> None:
        """Drop the state of dropout, which CUDA keeps until the process ends."""
        self._dropout_state = None

    def _kernel(self, mode: str, operator: Any, *, is_packed: bool) -> Callable[..., Any]:
        """Return the kernel of an operator whose input is packed, or is not."""

        def layer(x: Tensor, *args: Any) -> Any:
            batch_sizes, args = (args[0], args[1:]) if is_packed else (None, args)
            hx, params, *options = args
            check_devices_of_layer(x, hx if mode == "lstm" else [hx], params)
            # `cudnn_is_acceptable` and `use_cudnn` of aten/src/ATen/native/RNN.cpp
            if not torch.backends.cudnn.enabled or x.dtype not in _CUDNN_DTYPES or not x.numel():
                packing = () if batch_sizes is None else (batch_sizes,)
                return operator.decompose(x, *packing, hx, params, *options)
            hidden = (hx[0], hx[1]) if mode == "lstm" else (hx, None)
            sizes = None if batch_sizes is None else [int(size) for size in batch_sizes.tolist()]
            result = self._run(mode, x, hidden, params, options, sizes)
            return result if mode == "lstm" else result[:2]

        return layer

    def _run(
        self,
        mode: str,
        x: Tensor,
        hidden: tuple[Tensor, Tensor | None],
        params: Sequence[Tensor],
        options: Sequence[Any],
        batch_sizes: list[int] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_cudnn_impl` of aten/src/ATen/native/cudnn/RNN.cpp.

        Args:
            mode: one of `MODES`.
            x: input (see `_RnnCall`).
            hidden: hidden state, and cell state of an LSTM.
            params: parameters by layer and direction.
            options: has_biases, num_layers, dropout, train, bidirectional, and batch_first of an
                input that is not packed.
            batch_sizes: sequences that have each step; None: the input is not packed.
        """
        has_biases, layers, dropout, train, bidirectional = options[:5]
        batch_first = batch_sizes is None and options[5]
        hx, cx = hidden
        hidden_size, proj_size = hx.shape[2], 0
        if cx is not None and cx.shape[2] != hx.shape[2]:
            hidden_size, proj_size = cx.shape[2], hx.shape[2]
        stride = (4 if has_biases else 2) + (1 if proj_size else 0)
        call = _RnnCall(
            *(x, list(params), stride, None, hx, cx, MODES.index(mode), hidden_size, proj_size),
            *(layers, batch_first, dropout, train, bidirectional, batch_sizes or [], None),
        )
        buffer = _buffer_of(params, call.shape)
        state = self._state_of_dropout(x, dropout, train)
        call = call._replace(buffer=buffer, dropout_state=state)
        out, hy, cy, _, _ = aten._cudnn_rnn.default(*call)
        return out, hy, cy

    def kernels(self) -> dict[str, Callable[..., Any]]:
        """Return the kernels by the operators' names, each called with the operator's arguments."""
        chosen: dict[str, Callable[..., Any]] = {}
        for mode in MODES:
            operator = getattr(aten, mode)
            chosen[f"{mode}.input"] = self._kernel(mode, operator.input, is_packed=False)
            chosen[f"{mode}.data"] = self._kernel(mode, operator.data, is_packed=True)
        return {**chosen, "lstm_cell": _lstm_cell, "gru_cell": _gru_cell}


def autocast_kernel(*args: Any) -> Any:
    """`_cudnn_rnn_cast_reflatten` of aten/src/ATen/cudnn/AutocastRNN.cpp, for `_cudnn_rnn`.

    To half precision, whatever dtype autocast is set to; the weights go to a flat buffer of their
    own at each call. Their copies are seen by autograd, the buffer is not.
    """
    call = _RnnCall(*args)
    half = torch.float16
    with ExcludedKeys(AUTOCAST_CUDA_KEYS):
        held = call.weight[0] if call.buffer is None else call.buffer
        if held.dtype in (torch.float32, torch.bfloat16):
            shape = call.shape
            buffer = torch.zeros(shape.weight_elements, dtype=half, device=call.x.device)
            # `get_parameters` gives each the shape (elements, 1), and so have the gradients.
            weight = [
                torch.empty(0, dtype=half, device=call.x.device)
                .set_(buffer.untyped_storage(), part.storage_offset(), (part.numel(), 1), (1, 1))
                .copy_(original.view(-1, 1))
                for part, original in zip(
                    _parameters_in(buffer, shape, call.weight_stride >= 4), call.weight, strict=True
                )
            ]
            call = call._replace(weight=weight, buffer=buffer)
        hx, cx, x = call.hx, call.cx, call.x  # Python frees them in this order
        cx = None if cx is None else _to_half(cx)
        hx, x = _to_half(hx), _to_half(x)
        return aten._cudnn_rnn.default(*call._replace(x=x, hx=hx, cx=cx))


def _to_half(tensor: Tensor) -> Tensor:
    is_eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.float16) if is_eligible else tensor


def flatten_parameters(
    module: torch.nn.RNNBase, is_on_gpu: Callable[[Tensor], bool] = lambda tensor: tensor.is_meta
) -> None:
    """Do what `nn.RNNBase.flatten_parameters` does on CUDA (torch/nn/modules/rnn.py).

    `_cudnn_rnn_flatten_weight` allocates one buffer, copies the weights, and lets each parameter
    go over to its part, which frees what it had.

    Args:
        module: RNN, LSTM or GRU.
        is_on_gpu: tells whether a parameter lies on the simulated GPU.
    """
    weights: Sequence[Any] = flat_weights(module)
    if len(weights) != len(flat_weights_names(module)) or not torch.backends.cudnn.enabled:
        return
    if not all(isinstance(weight, Tensor) and is_on_gpu(weight) for weight in weights):
        return
    dtypes = {weight.dtype for weight in weights}
    if len(dtypes) != 1 or not dtypes.issubset(_CUDNN_DTYPES[:3]):
        return
    places = {(address_of(w.untyped_storage()), w.storage_offset()) for w in weights}
    if len(places) != len(weights):
        return
    shape = RecurrentShape(
        mode=module.mode.lower(),
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        proj_size=module.proj_size,
        layers=module.num_layers,
        directions=2 if module.bidirectional else 1,
    )
    with torch.no_grad():
        buffer = torch.zeros(shape.weight_elements, dtype=weights[0].dtype, device="meta")
        parts = _parameters_in(buffer, shape, module.bias)
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part


# ------------------------------------------------------------------------------------ the cells


@stands_for_torch
def _check_states(x: Tensor, w_hh: Tensor, states: dict[str, Tensor]) -> None:
    """`check_rnn_cell_forward_hidden` of aten/src/ATen/native/RNN.cpp."""
    for label, state in states.items():
        if x.shape[0] != state.shape[0]:
            raise RuntimeError(
                f"Input batch size {x.shape[0]} doesn't match hidden{label} "
                f"batch size {state.shape[0]}"
            )
        if state.shape[1] != w_hh.shape[1]:
            raise RuntimeError(
                f"hidden{label} has inconsistent hidden_size: got {state.shape[1]}, "
                f"expected {w_hh.shape[1]}"
            )


def _lstm_cell(
    x: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`LSTMCell` of aten/src/ATen/native/RNN.cpp: the biases go into the fused kernel."""
    _check_states(x, w_hh, {"[0]": hx[0], "[1]": hx[1]})
    of_input = torch.matmul(x, w_ih.t())
    of_state = torch.matmul(hx[0], w_hh.t())
    hy, cy, _ = aten._thnn_fused_lstm_cell.default(of_input, of_state, hx[1], b_ih, b_hh)
    return hy, cy


def _gru_cell(
    x: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`GRUCell` of aten/src/ATen/native/RNN.cpp."""
    _check_states(x, w_hh, {"": hx})
    of_input = torch.matmul(x, w_ih.t())
    of_state = torch.matmul(hx, w_hh.t())
    hy: Tensor = aten._thnn_fused_gru_cell.default(of_input, of_state, hx, b_ih, b_hh)[0]
    return hy


# ---------------------------------------------------------------------- outputs of the kernels


def _cudnn_rnn(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `_cudnn_rnn`: PyTorch's own meta kernel has no reserve."""
    call = _RnnCall(*args)
    x, hx, shape = call.x, call.hx, call.shape
    features = shape.output_size * shape.directions
    if call.batch_sizes:
        out = x.new_empty((x.shape[0], features))
    else:
        out = x.new_empty((shape.length, shape.batch, features))
        out = out.transpose(0, 1) if call.batch_first else out
    states = shape.layers * shape.directions
    hy = hx.new_empty((states, shape.batch, shape.output_size))
    cy = hx.new_empty(0)
    if call.cx is not None:
        cy = call.cx.new_empty((states, shape.batch, call.hidden_size))
    reserve = x.new_empty(temporary_bytes(shape)[1], dtype=torch.uint8)
    buffer = x.new_empty(shape.weight_elements) if call.buffer is None else call.buffer
    return out, hy, cy, reserve, buffer


def _cudnn_rnn_backward(
    *args: Any,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor]]:
    """The outputs of `_cudnn_rnn_backward`, which has no meta kernel in PyTorch.

    Args:
        *args: those of `_cudnn_rnn`, with output, grad_output, grad_hy and grad_cy after `cx`, and
            with reserve and output_mask at the end.
    """
    call, output_mask = _RnnCall(*args[:6], *args[10:20]), args[21]
    x = call.x
    is_transposed = call.batch_first and not call.batch_sizes
    grad_x = x.new_empty((x.shape[1], x.shape[0], x.shape[2]) if is_transposed else x.shape)
    grad_x = grad_x.transpose(0, 1) if is_transposed else grad_x
    grad_cx = None if call.cx is None else torch.empty_like(call.cx)
    grad_hx = torch.empty_like(call.hx)
    if not output_mask[3]:
        return grad_x, grad_hx, grad_cx, []
    if call.weight_stride < 4:  # without biases the gradients are copied out of the flat buffer
        return grad_x, grad_hx, grad_cx, [torch.empty_like(tensor) for tensor in call.weight]
    assert call.buffer is not None
    parts = _parameters_in(torch.empty_like(call.buffer), call.shape, True)
    grads = [part.view(like.shape) for part, like in zip(parts, call.weight, strict=True)]
    return grad_x, grad_hx, grad_cx, grads


def _fused_lstm_cell(
    input_gates: Tensor, _hidden_gates: Tensor, cx: Tensor, *_biases: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`_thnn_fused_lstm_cell_cuda`: the new states, and the gates."""
    hy = torch.empty_like(cx, memory_format=_CONTIGUOUS)
    cy = torch.empty_like(cx, memory_format=_CONTIGUOUS)
    return hy, cy, torch.empty_like(input_gates, memory_format=_CONTIGUOUS)


def _fused_lstm_cell_backward(
    grad_hy: Tensor | None,
    grad_cy: Tensor | None,
    cx: Tensor,
    _cy: Tensor,
    workspace: Tensor,
    has_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`_thnn_fused_lstm_cell_backward_impl_cuda`."""
    if grad_hy is None and grad_cy is None:
        return None, None, None
    gates = torch.empty_like(workspace, memory_format=_CONTIGUOUS)
    grad_bias = gates.new_empty(gates.shape[1]) if has_bias else None
    return gates, torch.empty_like(cx, memory_format=_CONTIGUOUS), grad_bias


def _fused_gru_cell(
    _input_gates: Tensor, _hidden_gates: Tensor, hx: Tensor, *_biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`_thnn_fused_gru_cell_cuda`: the new state, and five numbers for each of its elements."""
    workspace = hx.new_empty((hx.shape[0], hx.shape[1] * 5))
    return torch.empty_like(hx, memory_format=_CONTIGUOUS), workspace


def _fused_gru_cell_backward(
    grad_hy: Tensor, workspace: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """`_thnn_fused_gru_cell_backward_cuda`."""
    gates = (workspace.shape[0], workspace.shape[1] // 5 * 3)
    grads = [workspace.new_empty(gates), workspace.new_empty(gates)]
    biases = [workspace.new_empty(gates[1]) if has_bias else None for _ in range(2)]
    grad_hx = torch.empty_like(grad_hy, memory_format=_CONTIGUOUS)
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

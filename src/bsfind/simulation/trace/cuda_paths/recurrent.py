"""Recurrent layers as CUDA runs them: through cuDNN, with all weights in one flat buffer.

`lstm`, `gru` and `rnn_*` are composites that ask the device (aten/src/ATen/native/RNN.cpp, torch
2.6-2.13). For meta tensors they would unroll into the operators of each step; cuDNN keeps a reserve
instead. Cells have fused kernels on CUDA (aten/src/ATen/native/cuda/RNN.cu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cuda_checks.recurrent import check_devices_of_layer
from bsfind.simulation.kernels.recurrent import (
    MODES,
    RecurrentShape,
)
from bsfind.simulation.trace.cuda_paths.recurrent_outputs import parameters_in
from bsfind.simulation.trace.torch_private import (
    AUTOCAST_CUDA_KEYS,
    ExcludedKeys,
    address_of,
    flat_weights,
    flat_weights_names,
)
from bsfind.workload.blame import stands_for_torch

aten = torch.ops.aten

_CUDNN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def runs_on_cudnn(x: Tensor, mode: str, gpu: GpuSpec) -> bool:
    """`cudnn_is_acceptable` and `use_cudnn` of aten/src/ATen/native/RNN.cpp."""
    return torch.backends.cudnn.enabled and x.dtype in _CUDNN_DTYPES and x.numel() > 0


def _flat_buffer(params: Sequence[Tensor], shape: RecurrentShape) -> Tensor | None:
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


class RecurrentLayers:
    """The composites, with the state that cuDNN's dropout keeps for the process.

    Args:
        gpu: the GPU that is modelled.
    """

    def __init__(self, gpu: GpuSpec) -> None:
        self._gpu = gpu
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

    def _run(
        self,
        mode: str,
        x: Tensor,
        hidden: tuple[Tensor, Tensor | None],
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
        batch_sizes: list[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`_cudnn_impl` of aten/src/ATen/native/cudnn/RNN.cpp."""
        hx, cx = hidden
        hidden_size, proj_size = hx.shape[2], 0
        if cx is not None and cx.shape[2] != hx.shape[2]:
            hidden_size, proj_size = cx.shape[2], hx.shape[2]
        shape = RecurrentShape(
            mode=mode,
            input_size=x.shape[-1],
            hidden_size=hidden_size,
            proj_size=proj_size,
            layers=num_layers,
            directions=2 if bidirectional else 1,
        )
        buffer = _flat_buffer(params, shape)
        state = self._state_of_dropout(x, dropout, train)
        out, hy, cy, _, _ = aten._cudnn_rnn.default(
            x,
            list(params),
            (4 if has_biases else 2) + (1 if proj_size else 0),
            buffer,
            *(hx, cx, MODES.index(mode), hidden_size, proj_size, num_layers, batch_first, dropout),
            *(train, bidirectional, batch_sizes, state),
        )
        return out, hy, cy

    def _input_kernel(self, mode: str, operator: Any) -> Callable[..., Any]:
        def one_state(
            x: Tensor,
            hx: Any,
            params: Sequence[Tensor],
            has_biases: bool,
            num_layers: int,
            dropout: float,
            train: bool,
            bidirectional: bool,
            batch_first: bool,
        ) -> Any:
            check_devices_of_layer(x, hx if mode == "lstm" else [hx], params)
            rest = (has_biases, num_layers, dropout, train, bidirectional, batch_first)
            if not runs_on_cudnn(x, mode, self._gpu):
                return operator.decompose(x, hx, params, *rest)
            hidden = (hx[0], hx[1]) if mode == "lstm" else (hx, None)
            result = self._run(mode, x, hidden, params, *rest, [])
            return result if mode == "lstm" else result[:2]

        return one_state

    def _packed_kernel(self, mode: str, operator: Any) -> Callable[..., Any]:
        def packed(
            data: Tensor,
            batch_sizes: Tensor,
            hx: Any,
            params: Sequence[Tensor],
            has_biases: bool,
            num_layers: int,
            dropout: float,
            train: bool,
            bidirectional: bool,
        ) -> Any:
            check_devices_of_layer(data, hx if mode == "lstm" else [hx], params)
            rest = (has_biases, num_layers, dropout, train, bidirectional)
            if not runs_on_cudnn(data, mode, self._gpu):
                return operator.decompose(data, batch_sizes, hx, params, *rest)
            hidden = (hx[0], hx[1]) if mode == "lstm" else (hx, None)
            sizes = [int(size) for size in batch_sizes.tolist()]
            result = self._run(mode, data, hidden, params, *rest, False, sizes)
            return result if mode == "lstm" else result[:2]

        return packed

    def kernels(self) -> dict[str, Callable[..., Any]]:
        """Return the kernels by the operators' names, each called with the operator's arguments."""
        chosen: dict[str, Callable[..., Any]] = {}
        for mode in MODES:
            operator = getattr(aten, mode)
            chosen[f"{mode}.input"] = self._input_kernel(mode, operator.input)
            chosen[f"{mode}.data"] = self._packed_kernel(mode, operator.data)
        return {**chosen, "lstm_cell": _lstm_cell, "gru_cell": _gru_cell}


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


def autocast_kernel(*args: Any) -> Any:
    """`_cudnn_rnn_cast_reflatten` of aten/src/ATen/cudnn/AutocastRNN.cpp, for `_cudnn_rnn`.

    To half precision, whatever dtype autocast is set to; the weights go to a flat buffer of their
    own at each call. Their copies are seen by autograd, the buffer is not.
    """
    x, weight, stride, buffer, hx, cx, mode, hidden_size, proj_size, layers, *rest = args
    half = torch.float16
    with ExcludedKeys(AUTOCAST_CUDA_KEYS):
        if (weight[0] if buffer is None else buffer).dtype in (torch.float32, torch.bfloat16):
            shape = RecurrentShape(
                mode=MODES[mode],
                input_size=x.shape[-1],
                hidden_size=hidden_size,
                proj_size=proj_size,
                layers=layers,
                directions=2 if rest[3] else 1,
            )
            buffer = torch.zeros(shape.weight_elements, dtype=half, device=x.device)
            parts = [part for group in parameters_in(buffer, shape, stride >= 4) for part in group]
            # `get_parameters` gives each the shape (elements, 1), and so have the gradients.
            weight = [
                torch.empty(0, dtype=half, device=x.device)
                .set_(buffer.untyped_storage(), part.storage_offset(), (part.numel(), 1), (1, 1))
                .copy_(original.view(-1, 1))
                for part, original in zip(parts, weight, strict=True)
            ]
        cx, hx, x = (None if t is None else _to_half(t) for t in (cx, hx, x))
        return aten._cudnn_rnn.default(
            *(x, weight, stride, buffer, hx, cx, mode, hidden_size, proj_size, layers, *rest)
        )


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
        is_on_gpu: whether a parameter lies on the simulated GPU.
    """
    weights: Sequence[Any] = flat_weights(module)
    if len(weights) != len(flat_weights_names(module)) or not torch.backends.cudnn.enabled:
        return
    for weight in weights:
        if not isinstance(weight, Tensor) or not is_on_gpu(weight):
            return
        if weight.dtype != weights[0].dtype or weight.dtype not in _CUDNN_DTYPES[:3]:
            return
    if len({(address_of(w.untyped_storage()), w.storage_offset()) for w in weights}) != len(
        weights
    ):
        return
    shape = RecurrentShape(
        mode={"RNN_RELU": "rnn_relu", "RNN_TANH": "rnn_tanh"}.get(module.mode, module.mode.lower()),
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        proj_size=module.proj_size,
        layers=module.num_layers,
        directions=2 if module.bidirectional else 1,
    )
    with torch.no_grad():
        buffer = torch.zeros(shape.weight_elements, dtype=weights[0].dtype, device="meta")
        parts = [part for group in parameters_in(buffer, shape, module.bias) for part in group]
        for weight, part in zip(weights, parts, strict=True):
            weight.data = part

"""Recurrent layers: aten/src/ATen/native/RNN.cpp, native/RNN.h and native/cuda/RNN.cu."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.kernels.cuda_checks import cudnn
from bsfind.simulation.kernels.cuda_checks.check import checks, expects, implements, scalar_name
from bsfind.workload.blame import stands_for_torch


@stands_for_torch
def check_devices_of_layer(
    x: Tensor, hidden: Sequence[Tensor | None], params: Sequence[Tensor]
) -> None:
    """Refuse states and parameters on another device than the input's (`check_attributes`).

    Raises:
        RuntimeError: with PyTorch's text.
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
    cudnn.describes(call["weight"][0].dtype)
    x = call.tensor("input").dtype
    states = [call.maybe_tensor(name) for name in ("hx", "cx")]
    for name, tensors in (("hidden", states), ("parameter", call["weight"])):
        for tensor in tensors:
            if isinstance(tensor, TensorSpec) and tensor.dtype != x:
                raise RuntimeError(
                    f"Input and {name} tensors are not the same dtype, found input tensor with "
                    f"{scalar_name(x)} and {name} tensor with {scalar_name(tensor.dtype)}"
                )


@checks("aten::_thnn_fused_lstm_cell")
def _lstm_cell(call: Call) -> None:
    dtype = call.tensor("input_gates").dtype
    implements("_thnn_fused_lstm_cell_cuda", dtype)
    for name in ("hidden_gates", "input_bias", "hidden_bias", "cx"):
        expects(dtype, call.maybe_tensor(name))


@checks("aten::_thnn_fused_gru_cell")
def _gru_cell(call: Call) -> None:
    dtype = call.tensor("input_gates").dtype
    implements("_thnn_fused_gru_cell_cuda", dtype)
    for name in ("hidden_gates", "input_bias", "hidden_bias", "hx"):
        expects(dtype, call.maybe_tensor(name))

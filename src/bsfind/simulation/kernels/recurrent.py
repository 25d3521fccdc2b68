"""Recurrent layers: aten/src/ATen/native/cudnn/RNN.cpp and cuda/RNN.cu, torch 2.6-2.13.

The order of allocations is PyTorch's. The sizes of cuDNN's reserve and workspace are not documented:
`temporary_bytes` estimates them from what a training pass has to keep (the gates and two states of
each step). The estimate has not been compared with cuDNN on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates

MODES = ("rnn_relu", "rnn_tanh", "lstm", "gru")
"""`cudnnRNNMode_t`, which is the operators' argument `mode`."""


@dataclass(frozen=True, kw_only=True)
class RecurrentShape:
    """A recurrent layer, as cuDNN's descriptors describe it.

    Attributes:
        mode: one of `MODES`.
        input_size: features of the input.
        hidden_size: features of a state.
        proj_size: features of a projected state of an LSTM; 0 without projection.
        layers: number of layers.
        directions: 1 or 2.
        length: steps of the longest sequence.
        batch: number of sequences.
        element_size: bytes of a number.
        is_training: whether a backward pass follows.
    """

    mode: str
    input_size: int
    hidden_size: int
    proj_size: int
    layers: int
    directions: int
    length: int = 1
    batch: int = 1
    element_size: int = 4
    is_training: bool = True

    @property
    def gates(self) -> int:
        """Number of matrices that a step multiplies its input with."""
        return {"lstm": 4, "gru": 3}.get(self.mode, 1)

    @property
    def output_size(self) -> int:
        """Features of the output of one direction."""
        return self.proj_size or self.hidden_size

    def layer_weights(self, layer: int) -> tuple[int, int, int]:
        """Elements of the weights of input, state and projection of one direction of a layer."""
        width = self.input_size if layer == 0 else self.output_size * self.directions
        rows = self.gates * self.hidden_size
        return rows * width, rows * self.output_size, self.proj_size * self.hidden_size

    @property
    def layer_bias(self) -> int:
        """Elements of one of the two biases of one direction of a layer."""
        return self.gates * self.hidden_size

    @property
    def weight_elements(self) -> int:
        """Elements of the flat buffer, which has both biases even if the module has none."""
        weights = sum(sum(self.layer_weights(layer)) for layer in range(self.layers))
        return self.directions * (weights + 2 * self.layers * self.layer_bias)

    def offsets(self) -> list[tuple[int, ...]]:
        """Return where the parameters lie in the flat buffer, by layer and direction.

        All weights come first, then all biases.

        Returns:
            Elements from its beginning: w_ih, w_hh, b_ih, b_hh, and w_hr with a projection.
        """
        starts: list[tuple[int, ...]] = []
        position = 0
        for layer in range(self.layers):
            of_input, of_state, of_projection = self.layer_weights(layer)
            for _ in range(self.directions):
                projection = (position + of_input + of_state,) if of_projection else ()
                starts.append((position, position + of_input, *projection))
                position += of_input + of_state + of_projection
        result = []
        for start in starts:
            bias = (position, position + self.layer_bias)
            result.append((*start[:2], *bias, *start[2:]))
            position += 2 * self.layer_bias
        return result


def temporary_bytes(shape: RecurrentShape) -> tuple[int, int]:
    """Estimate `cudnnGetRNNTempSpaceSizes`.

    Returns:
        Bytes of the workspace, and of the reserve that is kept for the backward pass.
    """
    states = shape.length * shape.batch * shape.hidden_size * shape.directions * shape.element_size
    workspace = states * shape.gates + (4 << 20)
    reserve = states * (shape.gates + 2) * shape.layers if shape.is_training else 0
    return workspace, reserve


def cudnn_dropout_state_bytes(gpu: GpuSpec) -> int:
    """Estimate `cudnnDropoutGetStatesSize`: random states for half of the resident threads.

    cuRAND's XORWOW state has 48 bytes. PyTorch's source says "slightly over 2MB".
    """
    return gpu.sm_count * 2048 * 48 // 2


def shape_of(call: Call) -> RecurrentShape:
    """Return what a call of `_cudnn_rnn` or `_cudnn_rnn_backward` describes."""
    x = call.tensor("input")
    batch_sizes: Sequence[int] = call["batch_sizes"]
    if batch_sizes:
        length, batch = len(batch_sizes), batch_sizes[0]
    else:
        length, batch = x.shape[:2] if not call["batch_first"] else (x.shape[1], x.shape[0])
    return RecurrentShape(
        mode=MODES[call["mode"]],
        input_size=x.shape[-1],
        hidden_size=call["hidden_size"],
        proj_size=call["proj_size"],
        layers=call["num_layers"],
        directions=2 if call["bidirectional"] else 1,
        length=length,
        batch=batch,
        element_size=x.element_size,
        is_training=call["train"],
    )


def _steps_first(tensor: TensorSpec, call: Call) -> TensorSpec:
    """Return a sequence as cuDNN takes it: (steps, batch, features)."""
    if not call["batch_first"] or call["batch_sizes"]:
        return tensor
    return tensor.permuted((1, 0, *range(2, tensor.dim)))


def _contiguous(tensor: TensorSpec | None, trace: KernelTrace) -> int | None:
    """Copy a tensor that is not contiguous."""
    if tensor is None or tensor.is_contiguous():
        return None
    return trace.scratch(tensor.nbytes)


@allocates("aten::_cudnn_rnn")
def cudnn_rnn(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_cudnn_rnn`: outputs, weights if they are not flat, workspace, reserve."""
    _contiguous(_steps_first(call.tensor("input"), call), trace)
    workspace, _ = temporary_bytes(shape_of(call))
    for index in (0, 1, 2):
        trace.output(index)
    trace.output(4)
    trace.scratch(workspace)
    trace.output(3)


@allocates("aten::_cudnn_rnn_backward")
def cudnn_rnn_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_cudnn_rnn_backward`: the data's gradients, then the weights' in one flat buffer."""
    grads = [call.maybe_tensor(name) for name in ("grad_output", "grad_hy", "grad_cy")]
    if all(grad is None for grad in grads):
        return
    shape = shape_of(call)
    workspace, _ = temporary_bytes(shape)
    x = _steps_first(call.tensor("input"), call)
    zeros = []
    for grad, like in zip(grads, ("output", "hx", "cx"), strict=True):
        counterpart = call.maybe_tensor(like)
        if grad is None and counterpart is not None:
            zeros.append(trace.scratch(counterpart.nbytes))

    held = [_contiguous(x, trace)]
    if grads[0] is not None:
        held.append(_contiguous(_steps_first(grads[0], call), trace))
    elif call["batch_first"] and not call["batch_sizes"]:
        # The zeros above have the output's shape, (batch, steps, features).
        output = call.tensor("output")
        if output.shape[0] != 1 and output.shape[1] != 1:
            held.append(trace.scratch(output.nbytes))
    trace.output(0)
    held.append(_contiguous(grads[1], trace))
    if call.maybe_tensor("cx") is not None:
        held.append(_contiguous(grads[2], trace))
    trace.output(1)
    trace.output(2)
    held.append(trace.scratch(workspace))
    trace.free(*reversed(held))

    if call["output_mask"][3]:
        held = [_contiguous(x, trace)]
        has_biases = call["weight_stride0"] >= 4
        if has_biases:
            trace.outputs()
        else:
            held.append(trace.scratch(call.tensor("weight_buf").nbytes))
        held.append(trace.scratch(workspace))
        trace.outputs()
        trace.free(*reversed(held))
    trace.free(*reversed(zeros))


@allocates("aten::_thnn_fused_lstm_cell", "aten::_thnn_fused_gru_cell")
def fused_cell(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_thnn_fused_lstm_cell_cuda` and `_thnn_fused_gru_cell_cuda`: the workspace comes first."""
    trace.output(len(call.outputs) - 1)

"""Losses: their values for each element, before these are averaged.

Reductions are 0 (none), 1 (mean) and 2 (sum). torch 2.13.
"""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, elementwise, output_of_bytes
from bsfind.simulation.kernels.reductions import axes, sum_steps


def _average(steps: Steps, spec: TensorSpec, gpu: CudaTarget) -> None:
    sum_steps(steps, spec, axes(spec, None), gpu)


@allocates("aten::mse_loss", "aten::smooth_l1_loss")
def structured_loss(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The meta function makes the output in full size, and shrinks it (native/Loss.cpp)."""
    losses = elementwise(call.tensor("self"), call.tensor("target"))
    if call["reduction"] == 0:
        return
    output_of_bytes(steps, 0, losses.nbytes)
    steps.scratch(losses.nbytes)
    _average(steps, losses, gpu)


@allocates("aten::huber_loss")
def huber_loss(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`huber_loss` of native/Loss.cpp."""
    if call["reduction"] == 0:
        return
    losses = elementwise(call.tensor("self"), call.tensor("target"))
    steps.scratch(losses.nbytes)
    steps.outputs()
    _average(steps, losses, gpu)


@allocates("aten::binary_cross_entropy", "aten::soft_margin_loss")
def shrunk_loss(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The output holds all losses, is averaged, and shrunk (cuda/Loss.cu, native/Loss.cpp)."""
    if call["reduction"] == 0:
        return
    losses = elementwise(call.tensor("self"))
    output_of_bytes(steps, 0, losses.nbytes)
    steps.scratch(losses.element_size)
    _average(steps, losses, gpu)


@allocates("aten::soft_margin_loss_backward")
def soft_margin_loss_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`exp(-target * self)` in three steps (native/Loss.cpp)."""
    negative = elementwise(call.tensor("target"))
    product = elementwise(negative, call.tensor("self"))
    first, second = steps.scratch(negative.nbytes), steps.scratch(product.nbytes)
    steps.scratch(product.nbytes)
    steps.free(second, first)


@allocates("aten::binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Composed of others (`binary_cross_entropy_with_logits` of native/Loss.cpp)."""
    logits, target = call.tensor("self"), call.tensor("target")
    log_sigmoid = steps.scratch(elementwise(logits).nbytes)
    weight = call.maybe_tensor("pos_weight")
    if weight is not None:
        lessened = elementwise(weight)
        weighted = elementwise(lessened, target)
        handles = steps.scratch(lessened.nbytes), steps.scratch(weighted.nbytes)
        steps.free(*handles)
    losses = elementwise(target)  # 1 - target
    if call["reduction"] == 0:
        steps.outputs()
    else:
        handle = steps.scratch(losses.nbytes)
        steps.outputs()
        _average(steps, losses, gpu)
        steps.free(handle)
    steps.free(log_sigmoid)


@allocates("aten::nll_loss_forward")
def nll_loss_forward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Reads contiguous tensors (cuda/Loss.cu)."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))
    contiguous(steps, call.tensor("target"))


@allocates("aten::nll_loss_backward")
def nll_loss_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Reads contiguous tensors (cuda/Loss.cu)."""
    steps.outputs()
    contiguous(steps, call.tensor("target"))
    contiguous(steps, call.tensor("self"))


@allocates("aten::multi_margin_loss_backward", "aten::multilabel_margin_loss_backward")
def margin_loss_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Reads contiguous tensors (cuda/MultiMarginLoss.cu, cuda/MultiLabelMarginCriterion.cu)."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))
    contiguous(steps, call.tensor("target"))
    belongs = call.maybe_tensor("is_target")
    if belongs is not None:
        contiguous(steps, belongs)


@allocates("aten::nll_loss2d_forward")
def nll_loss2d_forward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The total weight comes first (cuda/NLLLoss2d.cu); reducing kernels read contiguous tensors."""
    steps.output(1)
    steps.output(0)
    _contiguous_inputs(call, steps)


@allocates("aten::nll_loss2d_backward")
def nll_loss2d_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Reducing kernels read contiguous tensors (cuda/NLLLoss2d.cu)."""
    steps.outputs()
    if call["reduction"] != 0:
        contiguous(steps, call.tensor("target"))


def _contiguous_inputs(call: Call, steps: Steps) -> None:
    if call["reduction"] != 0:
        contiguous(steps, call.tensor("self"))
        contiguous(steps, call.tensor("target"))


@allocates("aten::multi_margin_loss")
def multi_margin_loss(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Losses of the rows before they are averaged (cuda/MultiMarginLoss.cu)."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))
    contiguous(steps, call.tensor("target"))
    _losses_of_rows(call, steps)


@allocates("aten::multilabel_margin_loss_forward")
def multilabel_margin_loss_forward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The output comes last (cuda/MultiLabelMarginCriterion.cu)."""
    contiguous(steps, call.tensor("self"))
    contiguous(steps, call.tensor("target"))
    steps.output(1)
    _losses_of_rows(call, steps)
    steps.output(0)


def _losses_of_rows(call: Call, steps: Steps) -> None:
    spec = call.tensor("self")
    if call["reduction"] != 0 and spec.dim > 1:
        steps.scratch(spec.shape[0] * spec.element_size)


@allocates("aten::_ctc_loss")
def ctc_loss(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Offsets and lengths go to the GPU; alpha comes before the loss (cuda/LossCTC.cu)."""
    lengths = _ctc_lengths(call, steps)
    steps.output(1)
    steps.output(0)
    steps.free(lengths[1], lengths[0], lengths[2])


@allocates("aten::_ctc_loss_backward")
def ctc_loss_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Beta; with long inputs the gradient is collected by other operators (cuda/LossCTC.cu)."""
    log_probs, alpha = call.tensor("log_probs"), call.tensor("log_alpha")
    lengths = _ctc_lengths(call, steps)
    beta = steps.scratch(alpha.nbytes)
    steps.outputs()
    steps_of_time, batch, labels = log_probs.shape
    if 2 * steps_of_time + (24 * batch) // 10 + (2 * labels) // 10 > 450:
        first = [steps.scratch(alpha.nbytes) for _ in range(3)]
        infinite = steps.scratch(alpha.numel)
        steps.free(infinite, first[2])
        second = [steps.scratch(alpha.nbytes) for _ in range(2)]
        steps.free(second[0], first[1], second[1], first[0])
    steps.free(beta, lengths[1], lengths[0], lengths[2])


def _ctc_lengths(call: Call, steps: Steps) -> list[int | None]:
    batch = call.tensor("log_probs").shape[1] if call.tensor("log_probs").dim > 1 else 1
    return [steps.scratch(8 * batch) for _ in range(3)]

"""Losses and softmax (torch 2.13).

A loss computes a value for each element, which it then averages or sums. The argument `reduction`
is 0 (none), 1 (mean) or 2 (sum).
"""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import (
    contiguous,
    elementwise,
    output_of_bytes,
    reads_contiguous,
    row_major,
)
from bsfind.simulation.kernels.reductions import axes, trace_logsumexp, trace_sum

# native/cuda/SoftMax.cu: `host_softmax` and `host_softmax_backward`
allocates("aten::_softmax", "aten::_log_softmax")(reads_contiguous("self"))
allocates("aten::_log_softmax_backward_data")(reads_contiguous("grad_output", "output"))
# native/cuda/Loss.cu, MultiMarginLoss.cu, MultiLabelMarginCriterion.cu
allocates("aten::nll_loss_forward")(reads_contiguous("self", "target"))
allocates("aten::nll_loss_backward")(reads_contiguous("target", "self"))
allocates("aten::multi_margin_loss_backward", "aten::multilabel_margin_loss_backward")(
    reads_contiguous("self", "target", "is_target")
)


@allocates("aten::_softmax_backward_data")
def softmax_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`host_softmax_backward` of the product of gradient and output (native/cuda/SoftMax.cu)."""
    trace.outputs()
    output = call.tensor("output")
    product = elementwise(call.tensor("grad_output"), output)
    trace.scratch(product.nbytes)
    contiguous(trace, product)
    contiguous(trace, output)


@allocates("aten::nll_loss2d_forward")
def nll_loss2d_forward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The total weight comes first (cuda/NLLLoss2d.cu); reducing kernels read contiguous tensors."""
    trace.output(1)
    trace.output(0)
    if call["reduction"] != 0:
        contiguous(trace, call.tensor("self"))
        contiguous(trace, call.tensor("target"))


@allocates("aten::nll_loss2d_backward")
def nll_loss2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Reducing kernels read contiguous tensors (cuda/NLLLoss2d.cu)."""
    trace.outputs()
    if call["reduction"] != 0:
        contiguous(trace, call.tensor("target"))


def _average(trace: KernelTrace, spec: TensorSpec, gpu: GpuSpec) -> None:
    trace_sum(trace, spec, axes(spec, None), gpu)


@allocates("aten::mse_loss", "aten::smooth_l1_loss")
def structured_loss(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output is allocated in full size and shrunk (native/Loss.cpp)."""
    losses = elementwise(call.tensor("self"), call.tensor("target"))
    if call["reduction"] == 0:
        return
    output_of_bytes(trace, 0, losses.nbytes)
    trace.scratch(losses.nbytes)
    _average(trace, losses, gpu)


@allocates("aten::huber_loss")
def huber_loss(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`huber_loss` of native/Loss.cpp."""
    if call["reduction"] == 0:
        return
    losses = elementwise(call.tensor("self"), call.tensor("target"))
    trace.scratch(losses.nbytes)
    trace.outputs()
    _average(trace, losses, gpu)


@allocates("aten::binary_cross_entropy", "aten::soft_margin_loss")
def shrunk_loss(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output holds all losses and is averaged and shrunk (cuda/Loss.cu, native/Loss.cpp)."""
    if call["reduction"] == 0:
        return
    losses = elementwise(call.tensor("self"))
    output_of_bytes(trace, 0, losses.nbytes)
    trace.scratch(losses.element_size)
    _average(trace, losses, gpu)


@allocates("aten::soft_margin_loss_backward")
def soft_margin_loss_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`exp(-target * self)` in three steps (native/Loss.cpp)."""
    negative = elementwise(call.tensor("target"))
    product = elementwise(negative, call.tensor("self"))
    first, second = trace.scratch(negative.nbytes), trace.scratch(product.nbytes)
    trace.scratch(product.nbytes)
    trace.free(second, first)


@allocates("aten::binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A composite of other operators (native/Loss.cpp)."""
    logits, target = call.tensor("self"), call.tensor("target")
    log_sigmoid = trace.scratch(elementwise(logits).nbytes)
    weight = call.maybe_tensor("pos_weight")
    if weight is not None:
        lessened = elementwise(weight)
        weighted = elementwise(lessened, target)
        handles = trace.scratch(lessened.nbytes), trace.scratch(weighted.nbytes)
        trace.free(*handles)
    losses = elementwise(target)  # 1 - target
    if call["reduction"] == 0:
        trace.outputs()
    else:
        handle = trace.scratch(losses.nbytes)
        trace.outputs()
        _average(trace, losses, gpu)
        trace.free(handle)
    trace.free(log_sigmoid)


@allocates("aten::multi_margin_loss")
def multi_margin_loss(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The losses of the rows are averaged (cuda/MultiMarginLoss.cu)."""
    trace.outputs()
    contiguous(trace, call.tensor("self"))
    contiguous(trace, call.tensor("target"))
    _losses_of_rows(call, trace)


@allocates("aten::multilabel_margin_loss_forward")
def multilabel_margin_loss_forward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output comes last (cuda/MultiLabelMarginCriterion.cu)."""
    contiguous(trace, call.tensor("self"))
    contiguous(trace, call.tensor("target"))
    trace.output(1)
    _losses_of_rows(call, trace)
    trace.output(0)


def _losses_of_rows(call: Call, trace: KernelTrace) -> None:
    spec = call.tensor("self")
    if call["reduction"] != 0 and spec.dim > 1:
        trace.scratch(spec.shape[0] * spec.element_size)


@allocates("aten::_ctc_loss")
def ctc_loss(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Offsets and lengths go to the GPU; alpha comes before the loss (cuda/LossCTC.cu)."""
    lengths = _ctc_lengths(call, trace)
    trace.output(1)
    trace.output(0)
    trace.free(lengths[1], lengths[0], lengths[2])


@allocates("aten::_ctc_loss_backward")
def ctc_loss_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Beta and the gradient; for large problems, other operators sum the blanks' part (cuda/LossCTC.cu).

    These also take the infinite losses out of the gradient (`zero_infinity`), into another tensor.
    """
    log_probs, alpha = call.tensor("log_probs"), call.tensor("log_alpha")
    lengths = _ctc_lengths(call, trace)
    beta = trace.scratch(alpha.nbytes)
    steps, labels = log_probs.shape[0], log_probs.shape[-1]
    batch = _ctc_batch(call)
    if 2 * steps + (24 * batch) // 10 + (2 * labels) // 10 <= 450:
        trace.outputs()
    elif call["zero_infinity"]:
        gradient = trace.scratch(log_probs.nbytes)
        _ctc_blanks(trace, alpha, gpu)
        zero = trace.scratch(alpha.element_size)
        infinite = trace.scratch(batch)
        trace.outputs()
        trace.free(infinite, zero, gradient)
    else:
        trace.outputs()
        _ctc_blanks(trace, alpha, gpu)
    trace.free(beta, lengths[1], lengths[0], lengths[2])


def _ctc_blanks(trace: KernelTrace, alpha: TensorSpec, gpu: GpuSpec) -> None:
    """Alpha and beta are added at the blanks, which are every other label, and summed over these."""
    shape = (*alpha.shape[:-1], alpha.shape[-1] // 2 + 1)
    blanks = TensorSpec(shape, row_major(shape), alpha.dtype)
    added = trace.scratch(blanks.nbytes)
    results = blanks.numel // shape[-1]
    summed = trace_logsumexp(
        *(trace, blanks, {len(shape) - 1}, gpu, results),
        lambda: trace.scratch(results * alpha.element_size),
    )
    trace.free(summed, added)


def _ctc_lengths(call: Call, trace: KernelTrace) -> list[int | None]:
    return [trace.scratch(8 * _ctc_batch(call)) for _ in range(3)]


def _ctc_batch(call: Call) -> int:
    """Return the number of sequences; without a dimension for them, there is one."""
    log_probs = call.tensor("log_probs")
    return log_probs.shape[1] if log_probs.dim > 2 else 1

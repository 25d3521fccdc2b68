"""Softmax and log-softmax: they read contiguous tensors (native/cuda/SoftMax.cu, torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates
from bsfind.simulation.kernels.layouts import contiguous, elementwise


@allocates("aten::_softmax", "aten::_log_softmax")
def softmax(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`host_softmax`: a copy of an input that is not contiguous."""
    trace.outputs()
    contiguous(trace, call.tensor("self"))


@allocates("aten::_log_softmax_backward_data")
def log_softmax_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`host_softmax_backward`: copies of what is not contiguous."""
    trace.outputs()
    contiguous(trace, call.tensor("grad_output"))
    contiguous(trace, call.tensor("output"))


@allocates("aten::_softmax_backward_data")
def softmax_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """As for the logarithm, of the product of gradient and output."""
    trace.outputs()
    output = call.tensor("output")
    product = elementwise(call.tensor("grad_output"), output)
    trace.scratch(product.nbytes)
    contiguous(trace, product)
    contiguous(trace, output)

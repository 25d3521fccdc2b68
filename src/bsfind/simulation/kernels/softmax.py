"""Softmax and log-softmax: they read contiguous tensors (native/cuda/SoftMax.cu, torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates
from bsfind.simulation.kernels.layouts import contiguous, elementwise


@allocates("aten::_softmax", "aten::_log_softmax")
def softmax(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`host_softmax`: a copy of an input that is not contiguous."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))


@allocates("aten::_log_softmax_backward_data")
def log_softmax_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`host_softmax_backward`: copies of what is not contiguous."""
    steps.outputs()
    contiguous(steps, call.tensor("grad_output"))
    contiguous(steps, call.tensor("output"))


@allocates("aten::_softmax_backward_data")
def softmax_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """As for the logarithm, of the product of gradient and output."""
    steps.outputs()
    output = call.tensor("output")
    product = elementwise(call.tensor("grad_output"), output)
    steps.scratch(product.nbytes)
    contiguous(steps, product)
    contiguous(steps, output)

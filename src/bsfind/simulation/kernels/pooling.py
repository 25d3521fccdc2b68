"""Pooling: kernels read contiguous or channels-last tensors (aten/src/ATen/native/cuda, torch 2.13)."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates
from bsfind.simulation.kernels.layouts import (
    contiguous,
    contiguous_in,
    output_of_bytes,
    suggested_format,
)


@allocates(
    "aten::max_pool2d_with_indices",
    "aten::max_pool3d_with_indices",
    "aten::avg_pool2d",
)
def pool_in_its_format(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The input in the format that it suggests."""
    steps.outputs()
    spec = call.tensor("self")
    contiguous_in(steps, spec, suggested_format(spec))


@allocates("aten::_adaptive_avg_pool2d_backward")
def adaptive_avg_pool2d_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The channels-last kernel takes any strides (AdaptiveAveragePooling.cu)."""
    steps.outputs()
    if suggested_format(call.tensor("self")) == torch.contiguous_format:
        contiguous(steps, call.tensor("grad_output"))


@allocates("aten::adaptive_max_pool2d")
def adaptive_max_pool2d(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Results in another layout are made aside; single images are read as they are."""
    steps.outputs()
    for output in call.outputs:
        if output is not None:
            contiguous(steps, output)
    if call.tensor("self").dim == 4:
        contiguous(steps, call.tensor("self"))


@allocates("aten::adaptive_max_pool2d_backward")
def adaptive_max_pool2d_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """All of them contiguous (AdaptiveMaxPooling2d.cu)."""
    steps.outputs()
    contiguous(steps, call.tensor("grad_output"))
    contiguous(steps, call.tensor("indices"))
    output = call.outputs[0]
    if output is not None:
        contiguous(steps, output)


@allocates("aten::avg_pool3d", "aten::adaptive_max_pool3d")
def pool_contiguous(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The input contiguous."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))


@allocates("aten::_adaptive_avg_pool2d")
def adaptive_avg_pool2d(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The copy of the input comes before the output (AdaptiveAveragePooling.cu)."""
    spec = call.tensor("self")
    if spec.dim == 4:
        contiguous_in(steps, spec, suggested_format(spec))
    steps.outputs()


@allocates("aten::_adaptive_avg_pool3d")
def adaptive_avg_pool3d(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """As in two dimensions, but always contiguous (AdaptiveAveragePooling3d.cu)."""
    contiguous(steps, call.tensor("self"))
    steps.outputs()


@allocates(
    "aten::max_pool2d_with_indices_backward",
    "aten::max_pool3d_with_indices_backward",
    "aten::avg_pool2d_backward",
)
def backward_in_format(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Input and gradient in the format that the input suggests."""
    steps.outputs()
    spec = call.tensor("self")
    memory_format = suggested_format(spec)
    if call.operator != "aten::max_pool3d_with_indices_backward":
        contiguous_in(steps, spec, memory_format)
    contiguous_in(steps, call.tensor("grad_output"), memory_format)
    indices = call.maybe_tensor("indices")
    if indices is not None:
        contiguous_in(steps, indices, memory_format)


@allocates(
    "aten::avg_pool3d_backward",
    "aten::_adaptive_avg_pool3d_backward",
    "aten::adaptive_max_pool3d_backward",
)
def backward_contiguous(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The gradient contiguous."""
    steps.outputs()
    contiguous(steps, call.tensor("grad_output"))
    indices = call.maybe_tensor("indices")
    if indices is not None:
        contiguous(steps, indices)


@allocates("aten::fractional_max_pool2d_backward")
def fractional_max_pool2d_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The copy of the gradient comes before the output (FractionalMaxPool2d.cu)."""
    contiguous(steps, call.tensor("grad_output"))
    steps.outputs()


@allocates("aten::max_unpool2d", "aten::max_unpool3d")
def max_unpool(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Copies come before the output (MaxUnpooling.cu)."""
    contiguous(steps, call.tensor("self"))
    contiguous(steps, call.tensor("indices"))
    steps.outputs()


@allocates("aten::im2col")
def im2col(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The output is made as large as the input, and grows where that does not do (Im2Col.cu)."""
    spec, output = call.tensor("self"), call.outputs[0]
    if output is None or output.nbytes <= spec.nbytes:
        output_of_bytes(steps, 0, spec.nbytes)
        contiguous(steps, spec)
        return
    handles = [steps.scratch(spec.nbytes), contiguous(steps, spec)[1]]
    steps.outputs()
    steps.free(*handles)


@allocates("aten::col2im")
def col2im(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The output is made as large as the columns, and shrunk (Col2Im.cu)."""
    columns = call.tensor("self")
    output = call.outputs[0]
    if output is not None:
        output_of_bytes(steps, 0, max(columns.nbytes, output.nbytes))
    contiguous(steps, columns)

"""Pooling: kernels read contiguous or channels-last tensors (aten/src/ATen/native/cuda, torch 2.13)."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates
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
def pool_in_its_format(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The input in the format that it suggests."""
    trace.outputs()
    spec = call.tensor("self")
    contiguous_in(trace, spec, suggested_format(spec))


@allocates("aten::_adaptive_avg_pool2d_backward")
def adaptive_avg_pool2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The channels-last kernel takes any strides (AdaptiveAveragePooling.cu)."""
    trace.outputs()
    if suggested_format(call.tensor("self")) == torch.contiguous_format:
        contiguous(trace, call.tensor("grad_output"))


@allocates("aten::adaptive_max_pool2d")
def adaptive_max_pool2d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Results in another layout are made aside; single images are read as they are."""
    trace.outputs()
    for output in call.outputs:
        if output is not None:
            contiguous(trace, output)
    if call.tensor("self").dim == 4:
        contiguous(trace, call.tensor("self"))


@allocates("aten::adaptive_max_pool2d_backward")
def adaptive_max_pool2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """All of them contiguous (AdaptiveMaxPooling2d.cu)."""
    trace.outputs()
    contiguous(trace, call.tensor("grad_output"))
    contiguous(trace, call.tensor("indices"))
    output = call.outputs[0]
    if output is not None:
        contiguous(trace, output)


@allocates("aten::avg_pool3d", "aten::adaptive_max_pool3d")
def pool_contiguous(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The input contiguous."""
    trace.outputs()
    contiguous(trace, call.tensor("self"))


@allocates("aten::_adaptive_avg_pool2d")
def adaptive_avg_pool2d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The copy of the input comes before the output (AdaptiveAveragePooling.cu)."""
    spec = call.tensor("self")
    if spec.dim == 4:
        contiguous_in(trace, spec, suggested_format(spec))
    trace.outputs()


@allocates("aten::_adaptive_avg_pool3d")
def adaptive_avg_pool3d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """As in two dimensions, but always contiguous (AdaptiveAveragePooling3d.cu)."""
    contiguous(trace, call.tensor("self"))
    trace.outputs()


@allocates(
    "aten::max_pool2d_with_indices_backward",
    "aten::max_pool3d_with_indices_backward",
    "aten::avg_pool2d_backward",
)
def backward_in_format(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Input and gradient in the format that the input suggests."""
    trace.outputs()
    spec = call.tensor("self")
    memory_format = suggested_format(spec)
    if call.operator != "aten::max_pool3d_with_indices_backward":
        contiguous_in(trace, spec, memory_format)
    contiguous_in(trace, call.tensor("grad_output"), memory_format)
    indices = call.maybe_tensor("indices")
    if indices is not None:
        contiguous_in(trace, indices, memory_format)


@allocates(
    "aten::avg_pool3d_backward",
    "aten::_adaptive_avg_pool3d_backward",
    "aten::adaptive_max_pool3d_backward",
)
def backward_contiguous(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradient contiguous."""
    trace.outputs()
    contiguous(trace, call.tensor("grad_output"))
    indices = call.maybe_tensor("indices")
    if indices is not None:
        contiguous(trace, indices)


@allocates("aten::fractional_max_pool2d_backward")
def fractional_max_pool2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The copy of the gradient comes before the output (FractionalMaxPool2d.cu)."""
    contiguous(trace, call.tensor("grad_output"))
    trace.outputs()


@allocates("aten::max_unpool2d", "aten::max_unpool3d")
def max_unpool(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Copies come before the output (MaxUnpooling.cu)."""
    contiguous(trace, call.tensor("self"))
    contiguous(trace, call.tensor("indices"))
    trace.outputs()


@allocates("aten::im2col")
def im2col(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output is made as large as the input, and grows where that does not do (Im2Col.cu)."""
    spec, output = call.tensor("self"), call.outputs[0]
    if output is None or output.nbytes <= spec.nbytes:
        output_of_bytes(trace, 0, spec.nbytes)
        contiguous(trace, spec)
        return
    handles = [trace.scratch(spec.nbytes), contiguous(trace, spec)[1]]
    trace.outputs()
    trace.free(*handles)


@allocates("aten::col2im")
def col2im(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output is made as large as the columns, and shrunk (Col2Im.cu)."""
    columns = call.tensor("self")
    output = call.outputs[0]
    if output is not None:
        output_of_bytes(trace, 0, max(columns.nbytes, output.nbytes))
    contiguous(trace, columns)

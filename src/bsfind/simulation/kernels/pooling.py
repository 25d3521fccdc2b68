"""Pooling, upsampling and sampling of images: the layouts that their kernels read.

The sources are the files of aten/src/ATen/native/cuda that are named at each rule, torch 2.13.
"""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import (
    contiguous,
    contiguous_in,
    output_of_bytes,
    reads_contiguous,
    suggested_format,
)
from bsfind.simulation.kernels.matmul import cublas_workspace

_CHANNELS_OF_VECTOR = 4

# AveragePool3d.cu, AdaptiveMaxPooling3d.cu, AdaptiveAveragePooling3d.cu
allocates("aten::avg_pool3d", "aten::adaptive_max_pool3d")(reads_contiguous("self"))
allocates("aten::_adaptive_avg_pool3d")(reads_contiguous("self", copies_first=True))
allocates(
    "aten::avg_pool3d_backward",
    "aten::_adaptive_avg_pool3d_backward",
    "aten::adaptive_max_pool3d_backward",
)(reads_contiguous("grad_output", "indices"))
# FractionalMaxPool2d.cu, MaxUnpooling.cu
allocates("aten::fractional_max_pool2d_backward")(
    reads_contiguous("grad_output", copies_first=True)
)
allocates("aten::max_unpool2d", "aten::max_unpool3d")(
    reads_contiguous("self", "indices", copies_first=True)
)
# native/cudnn/GridSampler.cpp, torch 2.6-2.13
allocates("aten::cudnn_grid_sampler")(reads_contiguous("self", "grid", copies_first=True))
allocates("aten::cudnn_grid_sampler_backward")(
    reads_contiguous("self", "grid", "grad_output", copies_first=True)
)


@allocates(
    "aten::max_pool2d_with_indices",
    "aten::max_pool3d_with_indices",
    "aten::avg_pool2d",
)
def pool_in_its_format(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The kernel reads the input in the format that the input suggests."""
    trace.outputs()
    spec = call.tensor("self")
    contiguous_in(trace, spec, suggested_format(spec))


@allocates(
    "aten::max_pool2d_with_indices_backward",
    "aten::max_pool3d_with_indices_backward",
    "aten::avg_pool2d_backward",
)
def pool_backward_in_its_format(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The kernel reads input and gradient in the format that the input suggests."""
    trace.outputs()
    spec = call.tensor("self")
    memory_format = suggested_format(spec)
    if call.operator != "aten::max_pool3d_with_indices_backward":
        contiguous_in(trace, spec, memory_format)
    contiguous_in(trace, call.tensor("grad_output"), memory_format)
    indices = call.maybe_tensor("indices")
    if indices is not None:
        contiguous_in(trace, indices, memory_format)


@allocates("aten::_adaptive_avg_pool2d")
def adaptive_avg_pool2d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The copy of the input comes before the output (AdaptiveAveragePooling.cu)."""
    spec = call.tensor("self")
    if spec.dim == 4:
        contiguous_in(trace, spec, suggested_format(spec))
    trace.outputs()


@allocates("aten::_adaptive_avg_pool2d_backward")
def adaptive_avg_pool2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The channels-last kernel takes any strides (AdaptiveAveragePooling.cu)."""
    trace.outputs()
    if suggested_format(call.tensor("self")) == torch.contiguous_format:
        contiguous(trace, call.tensor("grad_output"))


@allocates("aten::adaptive_max_pool2d")
def adaptive_max_pool2d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Results in another layout get a contiguous copy; single images are read as they are."""
    trace.outputs()
    _contiguous_outputs(call, trace)
    if call.tensor("self").dim == 4:
        contiguous(trace, call.tensor("self"))


@allocates("aten::adaptive_max_pool2d_backward")
def adaptive_max_pool2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Gradient, indices and result are contiguous (AdaptiveMaxPooling2d.cu)."""
    trace.outputs()
    contiguous(trace, call.tensor("grad_output"))
    contiguous(trace, call.tensor("indices"))
    _contiguous_outputs(call, trace)


def _contiguous_outputs(call: Call, trace: KernelTrace) -> None:
    """Allocate the contiguous tensors that a kernel writes if its outputs are not contiguous."""
    for output in call.outputs:
        if output is not None:
            contiguous(trace, output)


@allocates("aten::im2col")
def im2col(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output first has the input's size and grows if that is not enough (Im2Col.cu)."""
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
    """The output first has the size of the columns and is shrunk (Col2Im.cu)."""
    columns = call.tensor("self")
    output = call.outputs[0]
    if output is not None:
        output_of_bytes(trace, 0, max(columns.nbytes, output.nbytes))
    contiguous(trace, columns)


# ------------------------------------------------------------------------------- upsampling


@allocates("aten::upsample_nearest2d", "aten::_upsample_nearest_exact2d")
def upsample_nearest2d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSampleNearest2d.cu."""
    _upsample_2d(call, trace, call.tensor("self"))


@allocates(
    "aten::upsample_nearest2d_backward",
    "aten::_upsample_nearest_exact2d_backward",
    "aten::upsample_bilinear2d_backward",
)
def upsample_nearest2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSampleNearest2d.cu, UpSampleBilinear2d.cu."""
    _upsample_2d(call, trace, call.tensor("grad_output"))


def _upsample_2d(call: Call, trace: KernelTrace, source: TensorSpec) -> None:
    """Channels-last kernels take 4 channels or more; the others write a contiguous tensor."""
    trace.outputs()
    output = call.outputs[0]
    if output is None:
        return
    channels_last = (
        suggested_format(source) == torch.channels_last
        and source.shape[1] >= _CHANNELS_OF_VECTOR
        and output.is_contiguous(torch.channels_last)
    )
    if channels_last:
        contiguous_in(trace, source, torch.channels_last)
        return
    contiguous(trace, output)
    contiguous(trace, source)


@allocates(
    "aten::upsample_nearest1d",
    "aten::_upsample_nearest_exact1d",
    "aten::upsample_nearest3d",
    "aten::_upsample_nearest_exact3d",
    "aten::_upsample_bilinear2d_aa",
    "aten::_upsample_bicubic2d_aa",
)
def upsample_contiguous(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSampleNearest{1d,3d}.cu, UpSampleBilinear2d.cu: both tensors are contiguous."""
    trace.outputs()
    _contiguous_outputs(call, trace)
    contiguous(trace, call.tensor("self"))


@allocates(
    "aten::upsample_bicubic2d_backward",
    "aten::upsample_linear1d_backward",
    "aten::upsample_nearest1d_backward",
    "aten::_upsample_nearest_exact1d_backward",
    "aten::upsample_nearest3d_backward",
    "aten::_upsample_nearest_exact3d_backward",
    "aten::_upsample_bicubic2d_aa_backward",
)
def upsample_contiguous_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSample{Bicubic2d,Linear1d,Nearest1d,Nearest3d}.cu: both tensors are contiguous."""
    trace.outputs()
    _contiguous_outputs(call, trace)
    contiguous(trace, call.tensor("grad_output"))


@allocates("aten::upsample_trilinear3d_backward")
def upsample_trilinear3d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSampleTrilinear3d.cu: the copy of the gradient comes first."""
    trace.outputs()
    contiguous(trace, call.tensor("grad_output"))
    _contiguous_outputs(call, trace)


# UpSampleBilinear2d.cu writes a result of any layout.
allocates("aten::_upsample_bilinear2d_aa_backward")(reads_contiguous("grad_output"))


@allocates("aten::affine_grid_generator")
def affine_grid_generator(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The regular grid, its axes, and a batched product (native/AffineGridGenerator.cpp)."""
    theta = call.tensor("theta")
    size = theta.element_size
    batch, _, *spatial = call["size"]
    points = batch
    for extent in spatial:
        points *= extent
    trace.scratch(points * (len(spatial) + 1) * size)
    for extent in reversed(spatial):
        copies = 1 if call["align_corners"] or extent <= 1 else 3
        trace.free(*[trace.scratch(extent * size) for _ in range(copies)])
    trace.outputs()
    cublas_workspace(gpu, trace)

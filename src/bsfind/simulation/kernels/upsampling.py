"""Upsampling: layouts that its kernels take (aten/src/ATen/native/cuda/UpSample*.cu, torch 2.13)."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, contiguous_in, suggested_format
from bsfind.simulation.kernels.matmul import cublas_workspace

_CHANNELS_OF_VECTOR = 4


def _in_either_format(call: Call, trace: KernelTrace, source: TensorSpec) -> None:
    """Channels-last kernels take 4 channels or more; else the result is made contiguous aside."""
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


@allocates("aten::upsample_nearest2d", "aten::_upsample_nearest_exact2d")
def nearest2d(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSampleNearest2d.cu."""
    _in_either_format(call, trace, call.tensor("self"))


@allocates(
    "aten::upsample_nearest2d_backward",
    "aten::_upsample_nearest_exact2d_backward",
    "aten::upsample_bilinear2d_backward",
)
def nearest2d_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """UpSampleNearest2d.cu, UpSampleBilinear2d.cu."""
    _in_either_format(call, trace, call.tensor("grad_output"))


@allocates(
    "aten::upsample_nearest1d",
    "aten::_upsample_nearest_exact1d",
    "aten::upsample_nearest3d",
    "aten::_upsample_nearest_exact3d",
    "aten::_upsample_bilinear2d_aa",
    "aten::_upsample_bicubic2d_aa",
)
def contiguous_input(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The input contiguous; a result in another layout is made aside."""
    trace.outputs()
    output = call.outputs[0]
    if output is not None:
        contiguous(trace, output)
    contiguous(trace, call.tensor("self"))


@allocates(
    "aten::upsample_bicubic2d_backward",
    "aten::upsample_linear1d_backward",
    "aten::upsample_nearest1d_backward",
    "aten::_upsample_nearest_exact1d_backward",
    "aten::upsample_nearest3d_backward",
    "aten::_upsample_nearest_exact3d_backward",
    "aten::upsample_trilinear3d_backward",
    "aten::_upsample_bilinear2d_aa_backward",
    "aten::_upsample_bicubic2d_aa_backward",
)
def contiguous_gradient(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradient contiguous; a result in another layout is made aside."""
    trace.outputs()
    output = call.outputs[0]
    gradient = call.tensor("grad_output")
    if call.operator == "aten::upsample_trilinear3d_backward":
        contiguous(trace, gradient)
        if output is not None:
            contiguous(trace, output)
        return
    if output is not None and call.operator != "aten::_upsample_bilinear2d_aa_backward":
        contiguous(trace, output)
    contiguous(trace, gradient)


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

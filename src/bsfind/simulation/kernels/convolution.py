"""Convolutions and their gradients.

Models `_convolution` and `convolution_backward` of aten/src/ATen/native/Convolution.cpp and
aten/src/ATen/native/cudnn/ConvShared.cpp, torch 2.13. Without cuDNN, PyTorch has kernels for depthwise
convolutions, and columns with cuBLAS for what cuDNN cannot or may not do:
`torch.backends.cudnn.enabled = False`, bfloat16 before Ampere, an output padding that reaches the
stride.

With `torch.backends.cudnn.benchmark`, the first call of each shape allocates the largest workspace of all
engines, as far as it fits, times up to ten, and empties the allocator's cache; later calls run the
fastest. The search itself is not modelled, and of the engines that are timed, the one with the largest
workspace is taken to be the fastest (`convolution_workspace`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.convolution_backend import (
    Backend,
    Convolution,
    output_memory_format,
    select_backend,
    view_as_2d,
)
from bsfind.simulation.kernels.convolution_workspace import workspace_bytes
from bsfind.simulation.kernels.cudnn_problem import (
    ConvolutionPass,
    ConvolutionProblem,
    convolved_size,
)
from bsfind.simulation.kernels.layouts import contiguous, contiguous_in, suggested_format
from bsfind.simulation.kernels.matmul import cublas_workspace
from bsfind.simulation.kernels.reductions import trace_reduction

_CUDNN = (Backend.CUDNN, Backend.CUDNN_TRANSPOSE)


@allocates("aten::convolution", "aten::_convolution")
def convolution(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The output; the bias is added in place."""
    prepared = _Prepared.of(call, gpu, trace)
    if prepared.backend in _CUDNN:
        _cudnn_forward(prepared)
    elif prepared.backend is not Backend.EMPTY:
        _native_forward(prepared, call.maybe_tensor("bias") is not None)
    trace.outputs()
    trace.free(prepared.copy)


@allocates("aten::convolution_backward")
def convolution_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradients of input, weight and bias that `output_mask` asks for."""
    prepared = _Prepared.of(call, gpu, trace)
    backend = prepared.backend
    gradient = call.tensor("grad_output")
    if gradient.dim == 3:
        gradient = view_as_2d(gradient)
    mask = tuple(call["output_mask"])
    if backend in _CUDNN:
        _cudnn_backward(prepared, gradient, mask)
    elif backend is Backend.DEPTHWISE_2D:
        _depthwise_2d_backward(prepared, gradient, mask)
    elif backend is Backend.DEPTHWISE_3D:
        _depthwise_3d_backward(prepared, gradient, mask)
    elif backend is Backend.EMPTY:
        trace.outputs()
    else:
        _column_backward(prepared, gradient, mask)
    if mask[2] and (backend in _CUDNN or backend is Backend.DEPTHWISE_2D):
        _bias_gradient(prepared, gradient)
    trace.free(prepared.copy)


@dataclass(frozen=True)
class _Prepared:
    """A call, with its arguments as the implementations get them.

    Attributes:
        x: input (N, C, *space) with two or three dimensions of space.
        w: weight (K, C / groups, *kernel).
        numbers: stride, padding and so on.
        backend: the implementation that PyTorch chooses.
        copy: handle of the contiguous copy of a one-dimensional input.
        gpu: the GPU that runs the kernel.
        trace: allocations of the kernel.
    """

    x: TensorSpec
    w: TensorSpec
    numbers: Convolution
    backend: Backend
    copy: int | None
    gpu: GpuSpec
    trace: KernelTrace

    @classmethod
    def of(cls, call: Call, gpu: GpuSpec, trace: KernelTrace) -> _Prepared:
        """Choose the implementation, and copy a one-dimensional input that is not contiguous."""
        x, w = call.tensor("input"), call.tensor("weight")
        numbers, copy = Convolution.of(call, w.dim - 2), None
        if w.dim == 3:
            x, copy = contiguous(trace, x)
            x, w = view_as_2d(x), view_as_2d(w)
        cudnn = bool(call.arguments.get("cudnn_enabled", True))
        return cls(x, w, numbers, select_backend(x, w, numbers, gpu, cudnn), copy, gpu, trace)

    def output_shape(self) -> tuple[int, ...]:
        """Return the sizes of the output."""
        numbers, size, kernel = self.numbers, self.x.shape[2:], self.w.shape[2:]
        lists = (numbers.stride, numbers.padding, numbers.dilation)
        if not numbers.transposed:
            return (self.x.shape[0], self.w.shape[0], *convolved_size(size, kernel, *lists))
        rows = zip(size, kernel, *lists, numbers.output_padding, strict=True)
        space = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + o for n, k, s, p, d, o in rows]
        return (self.x.shape[0], self.w.shape[1] * numbers.groups, *space)

    def cudnn_workspace(self, kind: ConvolutionPass, layout: torch.memory_format) -> int | None:
        """Allocate cuDNN's workspace; if it does not fit, another engine runs (`try_configs`).

        Args:
            kind: pass of the convolution that is not transposed.
            layout: memory format of all tensors.
        """
        numbers, x, w = self.numbers, self.x, self.w
        channels, size, out_channels = x.shape[1], x.shape[2:], w.shape[0]
        if numbers.transposed:  # of the convolution that it is the gradient of
            _, channels, *space = self.output_shape()
            size, out_channels = tuple(space), x.shape[1]
        problem = ConvolutionProblem(
            kind=kind,
            dtype=x.dtype,
            channels_last=layout != torch.contiguous_format,
            batch=x.shape[0],
            channels=channels,
            size=size,
            out_channels=out_channels,
            kernel=w.shape[2:],
            stride=numbers.stride,
            padding=numbers.padding,
            dilation=numbers.dilation,
            groups=numbers.groups,
        )
        return self.trace.optional_scratch(workspace_bytes(problem, self.gpu))

    def column_bytes(self, out_shape: tuple[int, ...]) -> int:
        """Return bytes of the columns of one sample and group.

        Columns are (C * kernel, positions of the output); of a transposed convolution, (channels of
        the output * kernel, positions of the input).
        """
        positions = math.prod(self.x.shape[2:] if self.numbers.transposed else out_shape[2:])
        return math.prod(self.w.shape[1:]) * positions * self.x.element_size


def _bias_gradient(prepared: _Prepared, gradient: TensorSpec) -> None:
    prepared.trace.output(2)
    space = set(range(gradient.dim)) - {1}
    size = max(4, gradient.element_size)
    trace_reduction(prepared.trace, gradient, space, prepared.gpu, size)


# ------------------------------------------------------------------------------------- cuDNN


def _cudnn_forward(prepared: _Prepared) -> None:
    x, w, trace = prepared.x, prepared.w, prepared.trace
    layout = output_memory_format(x, w)
    _, copy = contiguous_in(trace, x, layout)
    trace.outputs()
    _, weight_copy = contiguous_in(trace, w, layout)
    transposed = prepared.numbers.transposed
    workspace = prepared.cudnn_workspace("input_gradient" if transposed else "forward", layout)
    trace.free(workspace, weight_copy, copy)


def _cudnn_backward(prepared: _Prepared, gradient: TensorSpec, mask: tuple[bool, ...]) -> None:
    """`cudnn_convolution_backward` and `cudnn_convolution_transpose_backward`."""
    x, w, trace = prepared.x, prepared.w, prepared.trace
    transposed = prepared.numbers.transposed
    copy = gradient_copy = None
    if mask[1]:
        x, copy = contiguous_in(trace, x, output_memory_format(x, w))
    # The plain convolution calls `to`, which compares the formats alone, the transposed `contiguous`.
    layout = suggested_format(x)
    if transposed or suggested_format(gradient) != layout:
        gradient, gradient_copy = contiguous_in(trace, gradient, layout)
    if mask[0]:
        layout = output_memory_format(gradient, w)
        trace.output(0)
        _, weight_copy = contiguous_in(trace, w, layout)
        _, another = contiguous_in(trace, gradient, layout)
        workspace = prepared.cudnn_workspace("forward" if transposed else "input_gradient", layout)
        trace.free(workspace, another, weight_copy)
    if mask[1]:
        # In a transposed convolution input and output exchange their roles.
        first, second = (x, gradient) if transposed else (gradient, x)
        layout = output_memory_format(second, first)
        _, first_copy = contiguous_in(trace, first, layout)
        _, second_copy = contiguous_in(trace, second, layout)
        trace.output(1)
        workspace = prepared.cudnn_workspace("weight_gradient", layout)
        trace.free(workspace, second_copy, first_copy)
    trace.free(gradient_copy, copy)


# ----------------------------------------------------------------------------- without cuDNN


def _native_forward(prepared: _Prepared, has_bias: bool) -> None:
    backend, trace, groups = prepared.backend, prepared.trace, prepared.numbers.groups
    x, copy = contiguous(trace, prepared.x)
    if backend is Backend.DEPTHWISE_3D:  # conv_depthwise3d_cuda: the output comes before the copy
        trace.outputs()
    _, weight_copy = contiguous(trace, prepared.w)
    if backend in (Backend.DEPTHWISE_2D, Backend.DEPTHWISE_3D):
        trace.outputs()
        trace.free(weight_copy, copy)
        return
    part_bytes = math.prod(prepared.output_shape()) * x.element_size // groups
    outputs = [trace.scratch(part_bytes) for _ in range(groups * (groups > 1))]
    for _ in range(groups):
        # Each group's part of x is copied; the outputs of the groups are joined in the end.
        part = trace.scratch(x.nbytes // groups) if groups > 1 and x.shape[0] > 1 else None
        if groups == 1:
            trace.outputs()
        _sample_columns(prepared, has_bias)
        trace.free(part)
    trace.outputs()
    trace.free(*outputs, weight_copy, copy)


def _sample_columns(prepared: _Prepared, has_bias: bool) -> None:
    """Columns of one sample, and cuBLAS."""
    backend, numbers, trace = prepared.backend, prepared.numbers, prepared.trace
    shape = prepared.output_shape()
    pointwise = math.prod(prepared.w.shape[2:]) == 1 == max(numbers.stride)
    columns = ones = None
    if not (backend is Backend.SLOW_2D and pointwise and max(numbers.padding) == 0):
        columns = trace.scratch(prepared.column_bytes(shape))
    if has_bias and backend in (Backend.SLOW_TRANSPOSE_2D, Backend.SLOW_TRANSPOSE_3D):
        ones = trace.scratch(math.prod(shape[2:]) * prepared.x.element_size)
    cublas_workspace(prepared.gpu, trace)
    trace.free(ones, columns)


def _depthwise_2d_backward(
    prepared: _Prepared, gradient: TensorSpec, mask: tuple[bool, ...]
) -> None:
    """aten/src/ATen/native/cuda/DepthwiseConv2d.cu, torch 2.13; without the bias."""
    trace = prepared.trace
    _, gradient_copy = contiguous(trace, gradient)
    for wanted, operand, index in ((mask[1], prepared.x, 1), (mask[0], prepared.w, 0)):
        if wanted:
            _, copy = contiguous(trace, operand)
            trace.output(index)
            trace.free(copy)
    trace.free(gradient_copy)


def _depthwise_3d_backward(
    prepared: _Prepared, gradient: TensorSpec, mask: tuple[bool, ...]
) -> None:
    trace = prepared.trace
    trace.output(0)
    trace.output(1)
    copies = [contiguous(trace, spec)[1] for spec in (gradient, prepared.x, prepared.w)]
    if mask[2]:
        _bias_gradient(prepared, gradient)
    trace.free(*reversed(copies))


def _column_backward(prepared: _Prepared, gradient: TensorSpec, mask: tuple[bool, ...]) -> None:
    x, w, trace, groups = prepared.x, prepared.w, prepared.trace, prepared.numbers.groups
    copies = [contiguous(trace, x)[1], contiguous(trace, w)[1]]
    results = [
        trace.scratch(spec.nbytes // groups)
        for spec, wanted in ((x, mask[0]), (w, mask[1]))
        for _ in range(groups * (groups > 1 and wanted))
    ]
    for _ in range(groups):
        if groups > 1:
            parts = [trace.scratch(spec.nbytes // groups) for spec in (gradient, x)]
        else:
            parts = [contiguous(trace, gradient)[1]]
            trace.output(0)
            if prepared.backend is not Backend.SLOW_2D:  # which makes them after its columns
                trace.output(1)
                trace.output(2)
        columns = trace.scratch(prepared.column_bytes(gradient.shape))
        cublas_workspace(prepared.gpu, trace)
        if groups == 1:
            if mask[2]:
                _bias_gradient(prepared, gradient)
            trace.output(1)
        trace.free(columns, *reversed(parts))
    trace.outputs()
    trace.free(*reversed(results), *reversed(copies))

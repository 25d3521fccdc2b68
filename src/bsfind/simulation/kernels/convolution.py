"""Convolutions and their gradients: what PyTorch and cuDNN allocate for them.

Models `_convolution` and `convolution_backward` of aten/src/ATen/native/Convolution.cpp, and
aten/src/ATen/native/cudnn/ConvShared.cpp, torch 2.13. Implementations without cuDNN are in
`convolution_native`.

`torch.backends.cudnn.benchmark` is not modelled: with it, the first call of each shape tries all
engines, with the largest workspace that fits, empties the allocator's cache, and the later calls run
the fastest. The steps here are those without it.
"""

from __future__ import annotations

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
from bsfind.simulation.kernels.convolution_native import native_backward, native_forward
from bsfind.simulation.kernels.cudnn_problem import ConvolutionPass, ConvolutionProblem
from bsfind.simulation.kernels.cudnn_workspace import workspace_bytes
from bsfind.simulation.kernels.layouts import contiguous, contiguous_in, suggested_format
from bsfind.simulation.kernels.reductions import trace_reduction


@allocates("aten::convolution", "aten::_convolution")
def convolution(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Output; the bias is added in place."""
    prepared = _Prepared.of(call, gpu, trace)
    x, w, backend = prepared.x, prepared.w, prepared.backend
    if backend in (Backend.CUDNN, Backend.CUDNN_TRANSPOSE):
        layout = output_memory_format(x, w)
        x, copy = contiguous_in(trace, x, layout)
        trace.outputs()
        w, weight_copy = contiguous_in(trace, w, layout)
        kind: ConvolutionPass = "input_gradient" if prepared.numbers.transposed else "forward"
        workspace = prepared.workspace(kind, layout, gpu, trace)
        trace.free(workspace, weight_copy, copy)
    elif backend is Backend.EMPTY:
        trace.outputs()
    else:
        bias = call.maybe_tensor("bias")
        native_forward(backend, x, w, bias, prepared.numbers, trace, gpu)
    trace.free(prepared.copy)


@allocates("aten::convolution_backward")
def convolution_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Gradients of input, weight and bias, as far as `output_mask` wants them."""
    prepared = _Prepared.of(call, gpu, trace)
    x, w, backend = prepared.x, prepared.w, prepared.backend
    gradient = call.tensor("grad_output")
    if gradient.dim == 3:
        gradient = view_as_2d(gradient)
    mask = tuple(call["output_mask"])
    if backend in (Backend.CUDNN, Backend.CUDNN_TRANSPOSE):
        _cudnn_backward(prepared, gradient, mask, gpu, trace)
    elif backend is Backend.EMPTY:
        trace.outputs()
    else:
        native_backward(backend, gradient, x, w, mask, prepared.numbers, trace, gpu)
    if mask[2] and backend in (Backend.CUDNN, Backend.CUDNN_TRANSPOSE, Backend.DEPTHWISE_2D):
        trace.output(2)
        space = set(range(gradient.dim)) - {1}
        trace_reduction(trace, gradient, space, gpu, max(4, gradient.element_size))
    trace.free(prepared.copy)


@dataclass(frozen=True)
class _Prepared:
    """The arguments of a convolution, as the implementations get them.

    Attributes:
        x: input, with two or three dimensions in space.
        w: weight.
        numbers: of the convolution.
        backend: what is chosen.
        copy: handle of the contiguous copy of a one-dimensional input.
    """

    x: TensorSpec
    w: TensorSpec
    numbers: Convolution
    backend: Backend
    copy: int | None

    @classmethod
    def of(cls, call: Call, gpu: GpuSpec, trace: KernelTrace) -> _Prepared:
        """Choose the implementation, and copy a one-dimensional input that is not contiguous."""
        x, w = call.tensor("input"), call.tensor("weight")
        numbers, copy = Convolution.of(call, w.dim - 2), None
        if w.dim == 3:
            x, copy = contiguous(trace, x)
            x, w = view_as_2d(x), view_as_2d(w)
        cudnn = bool(call.arguments.get("cudnn_enabled", True))
        return cls(x, w, numbers, select_backend(x, w, numbers, gpu, cudnn), copy)

    def workspace(
        self, kind: ConvolutionPass, layout: torch.memory_format, gpu: GpuSpec, trace: KernelTrace
    ) -> int | None:
        """Allocate cuDNN's workspace, which is given up where there is no room; see `try_configs`.

        Args:
            kind: pass of the convolution that is not transposed.
            layout: of all tensors.
            gpu: where.
            trace: of the kernel.
        """
        numbers, x, w = self.numbers, self.x, self.w
        channels, size, out_channels = x.shape[1], x.shape[2:], w.shape[0]
        if numbers.transposed:  # of the convolution that it is the gradient of
            channels, out_channels = w.shape[1] * numbers.groups, x.shape[1]
            size = tuple(
                (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + extra
                for size, stride, padding, dilation, kernel, extra in zip(
                    x.shape[2:],
                    numbers.stride,
                    numbers.padding,
                    numbers.dilation,
                    w.shape[2:],
                    numbers.output_padding,
                    strict=True,
                )
            )
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
        return trace.optional_scratch(workspace_bytes(problem, gpu))


def _cudnn_backward(
    prepared: _Prepared,
    gradient: TensorSpec,
    mask: tuple[bool, ...],
    gpu: GpuSpec,
    trace: KernelTrace,
) -> None:
    """`cudnn_convolution_backward` and `cudnn_convolution_transpose_backward`."""
    x, w, transposed = prepared.x, prepared.w, prepared.numbers.transposed
    copy = gradient_copy = None
    if mask[1]:
        x, copy = contiguous_in(trace, x, output_memory_format(x, w))
    # The plain convolution uses `to`, which looks at the format alone, the transposed `contiguous`.
    layout = suggested_format(x)
    if transposed or suggested_format(gradient) != layout:
        gradient, gradient_copy = contiguous_in(trace, gradient, layout)
    if mask[0]:
        layout = output_memory_format(gradient, w)
        trace.output(0)
        _, weight_copy = contiguous_in(trace, w, layout)
        _, another = contiguous_in(trace, gradient, layout)
        kind: ConvolutionPass = "forward" if transposed else "input_gradient"
        workspace = prepared.workspace(kind, layout, gpu, trace)
        trace.free(workspace, another, weight_copy)
    if mask[1]:
        # The weight's gradient has the roles of input and output exchanged if it is transposed.
        first, second = (x, gradient) if transposed else (gradient, x)
        layout = output_memory_format(second, first)
        _, first_copy = contiguous_in(trace, first, layout)
        _, second_copy = contiguous_in(trace, second, layout)
        trace.output(1)
        workspace = prepared.workspace("weight_gradient", layout, gpu, trace)
        trace.free(workspace, second_copy, first_copy)
    trace.free(gradient_copy, copy)

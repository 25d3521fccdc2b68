"""Convolutions without cuDNN: PyTorch's depthwise kernels, and columns with cuBLAS.

Columns are for what cuDNN cannot do or may not: `torch.backends.cudnn.enabled = False`, bfloat16
before Ampere, an output padding that reaches the stride.
"""

from __future__ import annotations

import math

from bsfind.simulation.kernels.call import GpuSpec, KernelTrace, TensorSpec
from bsfind.simulation.kernels.convolution_backend import Backend, Convolution
from bsfind.simulation.kernels.layouts import contiguous
from bsfind.simulation.kernels.matmul import cublas_workspace
from bsfind.simulation.kernels.reductions import trace_reduction


def native_forward(
    backend: Backend,
    x: TensorSpec,
    w: TensorSpec,
    bias: TensorSpec | None,
    numbers: Convolution,
    trace: KernelTrace,
    gpu: GpuSpec,
) -> None:
    """Allocate what a convolution does that does not use cuDNN.

    Args:
        backend: which implementation.
        x: input (N, C, *space).
        w: weight.
        bias: of the output's channels.
        numbers: of the convolution.
        trace: of the kernel, which are continued.
        gpu: where.
    """
    x, copy = contiguous(trace, x)
    if backend is Backend.DEPTHWISE_3D:  # conv_depthwise3d_cuda: the output comes before the copy
        trace.outputs()
    w, weight_copy = contiguous(trace, w)
    if backend in (Backend.DEPTHWISE_2D, Backend.DEPTHWISE_3D):
        trace.outputs()
        trace.free(weight_copy, copy)
        return
    groups = numbers.groups
    outputs = [trace.scratch(_output_bytes(x, w, numbers)) for _ in range(groups * (groups > 1))]
    for _ in range(groups):
        # With groups their parts of x are copied, and their outputs are joined in the end.
        part = trace.scratch(x.nbytes // groups) if groups > 1 and x.shape[0] > 1 else None
        if groups == 1:
            trace.outputs()
        _trace_columns(backend, x, w, bias, numbers, trace, gpu)
        trace.free(part)
    trace.outputs()
    trace.free(*outputs, weight_copy, copy)


def native_backward(
    backend: Backend,
    gradient: TensorSpec,
    x: TensorSpec,
    w: TensorSpec,
    mask: tuple[bool, ...],
    numbers: Convolution,
    trace: KernelTrace,
    gpu: GpuSpec,
) -> None:
    """Allocate what the gradients of a convolution do that does not use cuDNN.

    Args:
        backend: which implementation.
        gradient: of the output.
        x: input (N, C, *space).
        w: weight.
        mask: which gradients are wanted: of input, weight and bias.
        numbers: of the convolution.
        trace: of the kernel, which are continued.
        gpu: where.
    """
    if backend is Backend.DEPTHWISE_2D:  # the bias is left to the caller
        _depthwise_2d_backward(gradient, x, w, mask, trace)
    elif backend is Backend.DEPTHWISE_3D:
        trace.output(0)
        trace.output(1)
        copies = [contiguous(trace, spec)[1] for spec in (gradient, x, w)]
        if mask[2]:
            _bias_gradient(gradient, trace, gpu)
        trace.free(*reversed(copies))
    else:
        _column_backward(backend, gradient, x, w, mask, numbers, trace, gpu)


def _depthwise_2d_backward(
    gradient: TensorSpec, x: TensorSpec, w: TensorSpec, mask: tuple[bool, ...], trace: KernelTrace
) -> None:
    """aten/src/ATen/native/cuda/DepthwiseConv2d.cu, torch 2.13."""
    _, gradient_copy = contiguous(trace, gradient)
    if mask[1]:
        _, copy = contiguous(trace, x)
        trace.output(1)
        trace.free(copy)
    if mask[0]:
        _, copy = contiguous(trace, w)
        trace.output(0)
        trace.free(copy)
    trace.free(gradient_copy)


def _column_backward(
    backend: Backend,
    gradient: TensorSpec,
    x: TensorSpec,
    w: TensorSpec,
    mask: tuple[bool, ...],
    numbers: Convolution,
    trace: KernelTrace,
    gpu: GpuSpec,
) -> None:
    copies = [contiguous(trace, x)[1], contiguous(trace, w)[1]]
    groups = numbers.groups
    results = [
        trace.scratch(spec.nbytes // groups)
        for spec, wanted in ((x, mask[0]), (w, mask[1]))
        for _ in range(groups * (groups > 1 and wanted))
    ]
    for _ in range(groups):
        parts = []
        if groups > 1:
            parts = [trace.scratch(spec.nbytes // groups) for spec in (gradient, x)]
        else:
            parts = [contiguous(trace, gradient)[1]]
            trace.output(0)
            if backend is not Backend.SLOW_2D:  # which makes them after its columns
                trace.output(1)
                trace.output(2)
        columns = trace.scratch(_column_bytes(backend, x, w, gradient.shape, numbers))
        cublas_workspace(gpu, trace)
        if groups == 1:
            if mask[2]:
                _bias_gradient(gradient, trace, gpu)
            trace.output(1)
        trace.free(columns, *reversed(parts))
    trace.outputs()
    trace.free(*reversed(results), *reversed(copies))


def _bias_gradient(gradient: TensorSpec, trace: KernelTrace, gpu: GpuSpec) -> None:
    trace.output(2)
    space = set(range(gradient.dim)) - {1}
    trace_reduction(trace, gradient, space, gpu, max(4, gradient.element_size))


def _trace_columns(
    backend: Backend,
    x: TensorSpec,
    w: TensorSpec,
    bias: TensorSpec | None,
    numbers: Convolution,
    trace: KernelTrace,
    gpu: GpuSpec,
) -> None:
    """Columns of one sample, and cuBLAS."""
    shape = _output_shape(x, w, numbers)
    pointwise = math.prod(w.shape[2:]) == 1 == max(numbers.stride) and max(numbers.padding) == 0
    columns = ones = None
    if not (backend is Backend.SLOW_2D and pointwise):
        columns = trace.scratch(_column_bytes(backend, x, w, shape, numbers))
    if bias is not None and backend in (Backend.SLOW_TRANSPOSE_2D, Backend.SLOW_TRANSPOSE_3D):
        ones = trace.scratch(math.prod(shape[2:]) * x.element_size)
    cublas_workspace(gpu, trace)
    trace.free(ones, columns)


def _output_shape(x: TensorSpec, w: TensorSpec, numbers: Convolution) -> tuple[int, ...]:
    rows = zip(
        x.shape[2:],
        w.shape[2:],
        numbers.stride,
        numbers.padding,
        numbers.dilation,
        numbers.output_padding,
        strict=True,
    )
    if numbers.transposed:
        space = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + o for n, k, s, p, d, o in rows]
        return (x.shape[0], w.shape[1] * numbers.groups, *space)
    space = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in rows]
    return (x.shape[0], w.shape[0], *space)


def _output_bytes(x: TensorSpec, w: TensorSpec, numbers: Convolution) -> int:
    """Bytes of the output of one group."""
    return math.prod(_output_shape(x, w, numbers)) * x.element_size // numbers.groups


def _column_bytes(
    backend: Backend, x: TensorSpec, w: TensorSpec, out: tuple[int, ...], numbers: Convolution
) -> int:
    """Bytes of the columns of one sample and group.

    (C * kernel, positions of the output); if it is transposed, the output's channels and the
    positions of the input.
    """
    positions = math.prod(x.shape[2:] if numbers.transposed else out[2:])
    return w.shape[1] * math.prod(w.shape[2:]) * positions * x.element_size

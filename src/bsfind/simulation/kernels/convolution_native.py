"""Convolutions without cuDNN: PyTorch's depthwise kernels, and columns with cuBLAS.

Columns are for what cuDNN cannot do or may not: `torch.backends.cudnn.enabled = False`, bfloat16
before Ampere, an output padding that reaches the stride.
"""

from __future__ import annotations

import math

from bsfind.simulation.kernels.call import CudaTarget, Steps, TensorSpec
from bsfind.simulation.kernels.convolution_backend import Backend, Convolution
from bsfind.simulation.kernels.layouts import contiguous
from bsfind.simulation.kernels.matmul import cublas_workspace
from bsfind.simulation.kernels.reductions import reduce_steps


def native_forward(
    backend: Backend,
    x: TensorSpec,
    w: TensorSpec,
    bias: TensorSpec | None,
    numbers: Convolution,
    steps: Steps,
    gpu: CudaTarget,
) -> None:
    """Allocate what a convolution does that does not use cuDNN.

    Args:
        backend: which implementation.
        x: input (N, C, *space).
        w: weight.
        bias: of the output's channels.
        numbers: of the convolution.
        steps: of the kernel, which are continued.
        gpu: where.
    """
    x, copy = contiguous(steps, x)
    if backend is Backend.DEPTHWISE_3D:  # conv_depthwise3d_cuda: the output comes before the copy
        steps.outputs()
    w, weight_copy = contiguous(steps, w)
    if backend in (Backend.DEPTHWISE_2D, Backend.DEPTHWISE_3D):
        steps.outputs()
        steps.free(weight_copy, copy)
        return
    groups = numbers.groups
    outputs = [steps.scratch(_output_bytes(x, w, numbers)) for _ in range(groups * (groups > 1))]
    for _ in range(groups):
        # With groups their parts of x are copied, and their outputs are joined in the end.
        part = steps.scratch(x.nbytes // groups) if groups > 1 and x.shape[0] > 1 else None
        if groups == 1:
            steps.outputs()
        _column_steps(backend, x, w, bias, numbers, steps, gpu)
        steps.free(part)
    steps.outputs()
    steps.free(*outputs, weight_copy, copy)


def native_backward(
    backend: Backend,
    gradient: TensorSpec,
    x: TensorSpec,
    w: TensorSpec,
    mask: tuple[bool, ...],
    numbers: Convolution,
    steps: Steps,
    gpu: CudaTarget,
) -> None:
    """Allocate what the gradients of a convolution do that does not use cuDNN.

    Args:
        backend: which implementation.
        gradient: of the output.
        x: input (N, C, *space).
        w: weight.
        mask: which gradients are wanted: of input, weight and bias.
        numbers: of the convolution.
        steps: of the kernel, which are continued.
        gpu: where.
    """
    if backend is Backend.DEPTHWISE_2D:  # the bias is left to the caller
        _depthwise_2d_backward(gradient, x, w, mask, steps)
    elif backend is Backend.DEPTHWISE_3D:
        steps.output(0)
        steps.output(1)
        copies = [contiguous(steps, spec)[1] for spec in (gradient, x, w)]
        if mask[2]:
            _bias_gradient(gradient, steps, gpu)
        steps.free(*reversed(copies))
    else:
        _column_backward(backend, gradient, x, w, mask, numbers, steps, gpu)


def _depthwise_2d_backward(
    gradient: TensorSpec, x: TensorSpec, w: TensorSpec, mask: tuple[bool, ...], steps: Steps
) -> None:
    """aten/src/ATen/native/cuda/DepthwiseConv2d.cu, torch 2.13."""
    _, gradient_copy = contiguous(steps, gradient)
    if mask[1]:
        _, copy = contiguous(steps, x)
        steps.output(1)
        steps.free(copy)
    if mask[0]:
        _, copy = contiguous(steps, w)
        steps.output(0)
        steps.free(copy)
    steps.free(gradient_copy)


def _column_backward(
    backend: Backend,
    gradient: TensorSpec,
    x: TensorSpec,
    w: TensorSpec,
    mask: tuple[bool, ...],
    numbers: Convolution,
    steps: Steps,
    gpu: CudaTarget,
) -> None:
    copies = [contiguous(steps, x)[1], contiguous(steps, w)[1]]
    groups = numbers.groups
    results = [
        steps.scratch(spec.nbytes // groups)
        for spec, wanted in ((x, mask[0]), (w, mask[1]))
        for _ in range(groups * (groups > 1 and wanted))
    ]
    for _ in range(groups):
        parts = []
        if groups > 1:
            parts = [steps.scratch(spec.nbytes // groups) for spec in (gradient, x)]
        else:
            parts = [contiguous(steps, gradient)[1]]
            steps.output(0)
            if backend is not Backend.SLOW_2D:  # which makes them after its columns
                steps.output(1)
                steps.output(2)
        columns = steps.scratch(_column_bytes(backend, x, w, gradient.shape, numbers))
        cublas_workspace(gpu, steps)
        if groups == 1:
            if mask[2]:
                _bias_gradient(gradient, steps, gpu)
            steps.output(1)
        steps.free(columns, *reversed(parts))
    steps.outputs()
    steps.free(*reversed(results), *reversed(copies))


def _bias_gradient(gradient: TensorSpec, steps: Steps, gpu: CudaTarget) -> None:
    steps.output(2)
    space = set(range(gradient.dim)) - {1}
    reduce_steps(steps, gradient, space, gpu, max(4, gradient.element_size))


def _column_steps(
    backend: Backend,
    x: TensorSpec,
    w: TensorSpec,
    bias: TensorSpec | None,
    numbers: Convolution,
    steps: Steps,
    gpu: CudaTarget,
) -> None:
    """Columns of one sample, and cuBLAS."""
    shape = _output_shape(x, w, numbers)
    pointwise = math.prod(w.shape[2:]) == 1 == max(numbers.stride) and max(numbers.padding) == 0
    columns = ones = None
    if not (backend is Backend.SLOW_2D and pointwise):
        columns = steps.scratch(_column_bytes(backend, x, w, shape, numbers))
    if bias is not None and backend in (Backend.SLOW_TRANSPOSE_2D, Backend.SLOW_TRANSPOSE_3D):
        ones = steps.scratch(math.prod(shape[2:]) * x.element_size)
    cublas_workspace(gpu, steps)
    steps.free(ones, columns)


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

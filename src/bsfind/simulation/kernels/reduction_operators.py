"""Operators that reduce: the types they read, and in which they keep partial results (torch 2.13).

aten/src/ATen/native/ReduceOps.cpp and aten/src/ATen/native/cuda/Reduce*Kernel.cu.
"""

from __future__ import annotations

from typing import Any

import torch

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import cast, contiguous, dense_strides, is_line
from bsfind.simulation.kernels.reductions import axes, reduce_steps, sum_steps


def _dims_of(call: Call) -> Any:
    return call.arguments.get("dim")


@allocates("aten::sum", "aten::nansum", "aten::mean", "aten::prod")
def sums(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Sum in float32 or wider; integers are copied to int64 first (ReduceOps.cpp)."""
    steps.outputs()
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or not spec.on_gpu:
        return
    dtype = output.dtype
    if spec.dtype in (torch.half, torch.bfloat16) and dtype == torch.float32:
        dtype = spec.dtype  # read as it is, `gpu_lowp_to_f32`
    spec, copy = cast(steps, spec, dtype)
    sum_steps(steps, spec, axes(spec, _dims_of(call)), gpu, out_bytes=output.element_size)
    steps.free(copy)


@allocates("aten::linalg_vector_norm", "aten::norm")
def vector_norm(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Norms (LinearAlgebra.cpp `linalg_vector_norm_out`, ReduceNormKernel.cu)."""
    steps.outputs()
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or not spec.on_gpu:
        return
    dtype = output.dtype
    if spec.dtype.is_complex or (
        spec.dtype in (torch.half, torch.bfloat16) and dtype == torch.float32
    ):
        dtype = spec.dtype
    spec, copy = cast(steps, spec, dtype)
    size = output.element_size
    reduce_steps(steps, spec, axes(spec, _dims_of(call)), gpu, max(4, size), out_bytes=size)
    steps.free(copy)


@allocates("aten::std", "aten::var", "aten::std_mean", "aten::var_mean")
def moments(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Welford's algorithm keeps mean, M2 and two counts (ReduceMomentKernel.cu, SharedReduceOps.h)."""
    steps.outputs()
    spec = call.tensor("self")
    size = 32 if spec.dtype == torch.float64 else 16
    reduce_steps(steps, spec, axes(spec, _dims_of(call)), gpu, size, unroll=2, vector=2)


@allocates("aten::amax", "aten::amin")
def extremes(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Extremes are kept in the type of the input (ReduceMaxValuesKernel.cu)."""
    steps.outputs()
    spec = call.tensor("self")
    reduce_steps(steps, spec, axes(spec, _dims_of(call)), gpu, spec.element_size)


@allocates("aten::any", "aten::all")
def logical(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Booleans of one byte (ReduceLogicKernel.cu)."""
    steps.outputs()
    spec = call.tensor("self")
    if spec.numel == 1:
        if spec.dtype != torch.bool:
            steps.scratch(1)
        return
    reduce_steps(steps, spec, axes(spec, _dims_of(call)), gpu, 1, out_bytes=1)


@allocates("aten::max.default", "aten::min.default")
def whole_extreme(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`max_all` reads a contiguous tensor (ReduceAllOps.cpp)."""
    steps.outputs()
    spec, copy = contiguous(steps, call.tensor("self"))
    reduce_steps(steps, spec, axes(spec, None), gpu, spec.element_size)
    steps.free(copy)


@allocates("aten::max.dim", "aten::min.dim", "aten::argmax", "aten::argmin")
def indexed_extreme(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Extremes with their place: pairs of a value and an int64 (ReduceArgMaxKernel.cu)."""
    steps.outputs()
    spec = call.tensor("self")
    dim = _dims_of(call)
    copy = None
    if dim is None and not is_line(spec):
        spec, copy = contiguous(steps, spec)
    elif dim is not None and spec.dim and spec.shape[dim] == 1:
        return
    reduce_steps(steps, spec, axes(spec, dim), gpu, 16)
    steps.free(copy)


@allocates("aten::aminmax")
def both_extremes(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Pairs of values (ReduceMinValuesKernel.cu `aminmax_allreduce_launch_kernel`)."""
    steps.outputs()
    spec = call.tensor("self")
    dim = _dims_of(call)
    copy = None
    if dim is None:
        spec, copy = contiguous(steps, spec)
    reduce_steps(steps, spec, axes(spec, dim), gpu, 2 * spec.element_size)
    steps.free(copy)


@allocates("aten::count_nonzero")
def count_nonzero(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`(self != 0).sum(dims)` (TensorAdvancedIndexing.cpp `count_nonzero_cuda`)."""
    spec = call.tensor("self")
    compared = None
    if spec.dtype != torch.bool:
        spec = TensorSpec(spec.shape, dense_strides(spec), torch.bool)
        compared = steps.scratch(spec.nbytes)
    steps.outputs()
    spec, copy = cast(steps, spec, torch.int64)
    reduce_steps(steps, spec, axes(spec, _dims_of(call)), gpu, 8)
    steps.free(copy, compared)


@allocates("aten::logsumexp")
def logsumexp(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`logsumexp_out_impl` of ReduceOps.cpp: amax, then the sum of shifted exponentials."""
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or spec.numel == 0:
        return
    spec, copy = cast(steps, spec, output.dtype)  # integers
    dims = axes(spec, _dims_of(call))
    largest = steps.scratch(output.nbytes)
    reduce_steps(steps, spec, dims, gpu, spec.element_size)
    absolute = steps.scratch(output.nbytes)
    infinite = steps.scratch(output.numel)
    steps.free(infinite, absolute)
    shifted = TensorSpec(spec.shape, dense_strides(spec), spec.dtype)
    exponentials = steps.scratch(shifted.nbytes)
    steps.outputs()
    sum_steps(steps, shifted, dims, gpu)
    steps.free(exponentials, largest, copy)

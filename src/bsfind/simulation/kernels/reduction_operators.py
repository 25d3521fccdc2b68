"""Operators that reduce: the types they read, and in which they keep partial results (torch 2.13).

aten/src/ATen/native/ReduceOps.cpp and aten/src/ATen/native/cuda/Reduce*Kernel.cu.
"""

from __future__ import annotations

from typing import Any

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import cast, contiguous, dense_strides, is_line
from bsfind.simulation.kernels.reductions import axes, trace_reduction, trace_sum


def _dims_of(call: Call) -> Any:
    return call.arguments.get("dim")


@allocates("aten::sum", "aten::nansum", "aten::mean", "aten::prod")
def sums(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Sum in float32 or wider; integers are copied to int64 first (ReduceOps.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or not spec.on_gpu:
        return
    dtype = output.dtype
    if spec.dtype in (torch.half, torch.bfloat16) and dtype == torch.float32:
        dtype = spec.dtype  # read as it is, `gpu_lowp_to_f32`
    spec, copy = cast(trace, spec, dtype)
    trace_sum(trace, spec, axes(spec, _dims_of(call)), gpu, out_bytes=output.element_size)
    trace.free(copy)


@allocates("aten::linalg_vector_norm", "aten::norm")
def vector_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Norms (LinearAlgebra.cpp `linalg_vector_norm_out`, ReduceNormKernel.cu)."""
    trace.outputs()
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or not spec.on_gpu:
        return
    dtype = output.dtype
    if spec.dtype.is_complex or (
        spec.dtype in (torch.half, torch.bfloat16) and dtype == torch.float32
    ):
        dtype = spec.dtype
    spec, copy = cast(trace, spec, dtype)
    size = output.element_size
    trace_reduction(trace, spec, axes(spec, _dims_of(call)), gpu, max(4, size), out_bytes=size)
    trace.free(copy)


@allocates("aten::std", "aten::var", "aten::std_mean", "aten::var_mean")
def moments(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Welford's algorithm keeps mean, M2 and two counts (ReduceMomentKernel.cu, SharedReduceOps.h)."""
    trace.outputs()
    spec = call.tensor("self")
    size = 32 if spec.dtype == torch.float64 else 16
    trace_reduction(trace, spec, axes(spec, _dims_of(call)), gpu, size, unroll=2, vector=2)


@allocates("aten::amax", "aten::amin")
def extremes(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Extremes are kept in the type of the input (ReduceMaxValuesKernel.cu)."""
    trace.outputs()
    spec = call.tensor("self")
    trace_reduction(trace, spec, axes(spec, _dims_of(call)), gpu, spec.element_size)


@allocates("aten::any", "aten::all")
def logical(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Booleans of one byte (ReduceLogicKernel.cu)."""
    trace.outputs()
    spec = call.tensor("self")
    if spec.numel == 1:
        if spec.dtype != torch.bool:
            trace.scratch(1)
        return
    trace_reduction(trace, spec, axes(spec, _dims_of(call)), gpu, 1, out_bytes=1)


@allocates("aten::max.default", "aten::min.default")
def whole_extreme(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`max_all` reads a contiguous tensor (ReduceAllOps.cpp)."""
    trace.outputs()
    spec, copy = contiguous(trace, call.tensor("self"))
    trace_reduction(trace, spec, axes(spec, None), gpu, spec.element_size)
    trace.free(copy)


@allocates("aten::max.dim", "aten::min.dim", "aten::argmax", "aten::argmin")
def indexed_extreme(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Extremes with their place: pairs of a value and an int64 (ReduceArgMaxKernel.cu)."""
    trace.outputs()
    spec = call.tensor("self")
    dim = _dims_of(call)
    copy = None
    if dim is None and not is_line(spec):
        spec, copy = contiguous(trace, spec)
    elif dim is not None and spec.dim and spec.shape[dim] == 1:
        return
    trace_reduction(trace, spec, axes(spec, dim), gpu, 16)
    trace.free(copy)


@allocates("aten::aminmax")
def both_extremes(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Pairs of values (ReduceMinValuesKernel.cu `aminmax_allreduce_launch_kernel`)."""
    trace.outputs()
    spec = call.tensor("self")
    dim = _dims_of(call)
    copy = None
    if dim is None:
        spec, copy = contiguous(trace, spec)
    trace_reduction(trace, spec, axes(spec, dim), gpu, 2 * spec.element_size)
    trace.free(copy)


@allocates("aten::count_nonzero")
def count_nonzero(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`(self != 0).sum(dims)` (TensorAdvancedIndexing.cpp `count_nonzero_cuda`)."""
    spec = call.tensor("self")
    compared = None
    if spec.dtype != torch.bool:
        spec = TensorSpec(spec.shape, dense_strides(spec), torch.bool)
        compared = trace.scratch(spec.nbytes)
    trace.outputs()
    spec, copy = cast(trace, spec, torch.int64)
    trace_reduction(trace, spec, axes(spec, _dims_of(call)), gpu, 8)
    trace.free(copy, compared)


@allocates("aten::logsumexp")
def logsumexp(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`logsumexp_out_impl` of ReduceOps.cpp: amax, then the sum of shifted exponentials."""
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or spec.numel == 0:
        return
    spec, copy = cast(trace, spec, output.dtype)  # integers
    dims = axes(spec, _dims_of(call))
    largest = trace.scratch(output.nbytes)
    trace_reduction(trace, spec, dims, gpu, spec.element_size)
    absolute = trace.scratch(output.nbytes)
    infinite = trace.scratch(output.numel)
    trace.free(infinite, absolute)
    shifted = TensorSpec(spec.shape, dense_strides(spec), spec.dtype)
    exponentials = trace.scratch(shifted.nbytes)
    trace.outputs()
    trace_sum(trace, shifted, dims, gpu)
    trace.free(exponentials, largest, copy)

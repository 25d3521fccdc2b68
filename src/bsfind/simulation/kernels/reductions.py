"""Reductions: thread blocks that share a sum exchange partial results in global memory.

Models `gpu_reduce_kernel` and `setReduceConfig` of aten/src/ATen/native/cuda/Reduce.cuh, with the
dimensions as `TensorIterator` orders and merges them (aten/src/ATen/TensorIterator.cpp), and the
operators of aten/src/ATen/native/ReduceOps.cpp and cuda/Reduce*Kernel.cu: the types that they read
and keep partial results in; torch 2.13. Tensors are assumed to be aligned as the allocator aligns
them: views that begin in the middle of a vector may be read in narrower vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import (
    cast,
    comes_after,
    contiguous,
    dense_strides,
    is_line,
    sorted_dimensions,
)

_Allocated = TypeVar("_Allocated")

_MAX_THREADS = 512
_WARP = 32
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Iteration:
    """A `TensorIterator` of one output and one input, the fastest dimension first.

    Attributes:
        shape: sizes.
        out: strides of the output in bytes, 0 where it is reduced.
        into: strides of the input in bytes.
    """

    shape: tuple[int, ...]
    out: tuple[int, ...]
    into: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def reduced(self) -> int:
        """Number of reduced dimensions, which come first."""
        return self.out.count(0)

    @property
    def outputs(self) -> int:
        """Number of results."""
        return math.prod(n for n, stride in zip(self.shape, self.out, strict=True) if stride)

    def fits_32_bit(self) -> bool:
        return self.numel <= _INT32_MAX and all(
            1 + sum((n - 1) * s for n, s in zip(self.shape, strides, strict=True)) <= _INT32_MAX
            for strides in (self.out, self.into)
        )

    def in_32_bit(self) -> Iterator[_Iteration]:
        """Yield parts that 32-bit offsets can address (`with_32bit_indexing`)."""
        if self.fits_32_bit():
            yield self
            return
        extents = [
            (n - 1) * max(a, b) for n, a, b in zip(self.shape, self.out, self.into, strict=True)
        ]
        split = extents.index(max(extents))
        half = self.shape[split] // 2
        for size in (half, self.shape[split] - half):
            shape = (*self.shape[:split], size, *self.shape[split + 1 :])
            yield from _Iteration(shape, self.out, self.into).in_32_bit()


def axes(spec: TensorSpec, dims: int | Sequence[int] | None) -> set[int]:
    """Return the dimensions that an argument `dim` names; None and [] name all of them."""
    if isinstance(dims, int):
        dims = [dims]
    if not dims:
        return set(range(spec.dim))
    return {dim % spec.dim for dim in dims} if spec.dim else set()


def trace_reduction(
    trace: KernelTrace,
    spec: TensorSpec,
    dims: set[int],
    gpu: GpuSpec,
    accumulate_bytes: int,
    *,
    unroll: int = 4,
    vector: int = 4,
    out_bytes: int | None = None,
) -> None:
    """Allocate and free the scratch memory of a reduction.

    Args:
        trace: allocations of the kernel, whose output is allocated already.
        spec: the tensor that is reduced, in the type that the kernel reads.
        dims: dimensions that are reduced.
        gpu: the GPU that runs the kernel.
        accumulate_bytes: size of a partial result.
        unroll: `vt0` of the kernel.
        vector: `input_vec_size` of the kernel.
        out_bytes: size of a result; None: that of an element. If partial results have another size,
            they are kept outside the output between the parts of a tensor that 32-bit offsets
            cannot address.
    """
    if spec.numel == 0:
        return
    iteration = _iteration(spec, dims)
    accumulated = None
    in_output = accumulate_bytes == (spec.element_size if out_bytes is None else out_bytes)
    if not in_output and not iteration.fits_32_bit():  # `AccumulationBuffer`
        accumulated = trace.scratch(iteration.outputs * accumulate_bytes)
    for part in iteration.in_32_bit():
        partial, semaphores = _scratch(
            part, spec.element_size, gpu, accumulate_bytes, unroll, vector
        )
        handles = trace.scratch(partial), trace.scratch(semaphores)
        trace.free(*reversed(handles))
    trace.free(accumulated)


def _iteration(spec: TensorSpec, dims: set[int]) -> _Iteration:
    """Order and merge dimensions (`reorder_dimensions`, `coalesce_dimensions`)."""
    out = [0] * spec.dim
    step = spec.element_size
    for dim in reversed(range(spec.dim)):
        if dim not in dims:
            out[dim] = step
            step *= spec.shape[dim]
    into = [stride * spec.element_size for stride in spec.stride]
    order = sorted_dimensions(
        spec.dim, lambda first, second: _slower(spec.shape, out, into, first, second)
    )
    merged: list[list[int]] = []
    for dim in order:
        size, o, i = spec.shape[dim], out[dim], into[dim]
        if merged:
            last = merged[-1]
            if last[0] == 1:
                merged[-1] = [size, o, i]
                continue
            if size == 1 or (last[0] * last[1] == o and last[0] * last[2] == i):
                last[0] *= size
                continue
        merged.append([size, o, i])
    shape, outs, intos = zip(*merged, strict=True) if merged else ((), (), ())
    return _Iteration(tuple(shape), tuple(outs), tuple(intos))


def _slower(
    shape: Sequence[int], out: Sequence[int], into: Sequence[int], first: int, second: int
) -> int:
    if (out[first] == 0) != (out[second] == 0):
        return 1 if out[second] == 0 else -1
    return comes_after(shape, (out, into), first, second)


def _scratch(
    part: _Iteration, size: int, gpu: GpuSpec, accumulate: int, unroll: int, vector: int
) -> tuple[int, int]:
    """Return bytes of partial results and of semaphores, both 0 if blocks share no output."""
    outputs = part.outputs
    inputs = part.numel // outputs
    dims, reduced = len(part.shape), part.reduced
    along_input = reduced == dims or (reduced > 0 and part.into[0] < part.into[reduced])
    width, height = (inputs, outputs) if along_input else (outputs, inputs)
    fastest = part.into[0 if along_input else reduced] if dims else size
    out_vector = 1
    if dims and fastest == size:
        if along_input:
            if width > 128 and dims == 1 and unroll >= vector:
                width //= vector
        else:
            out_vector = _output_vector(part, size)
            width //= out_vector

    most = _MAX_THREADS // out_vector
    wide = min(last_power_of_2(width), most)
    high = min(last_power_of_2(height), most)
    block_width = min(wide, _WARP)
    block_height = min(high, most // block_width)
    block_width = min(wide, most // block_height)

    step_input, step_output = (block_width, 1) if along_input else (1, block_width)
    per_thread = -(-inputs // step_input)
    if per_thread < block_height * 16 and per_thread < 256:
        return 0, 0  # a warp for each output
    step_input *= block_height
    grid = -(-(outputs // out_vector) // step_output)
    target = gpu.sm_count * (gpu.max_threads_per_sm // (block_width * block_height))
    per_thread = -(-inputs // step_input)
    if per_thread < 256 or grid > target:
        return 0, 0
    blocks = max(min(-(-target // grid), -(-per_thread // 16)), -(-per_thread // 256))
    if blocks <= 1:
        return 0, 0
    partial = accumulate * outputs * blocks
    if not along_input:
        partial *= block_width * out_vector
    return partial, 4 * grid


def _output_vector(part: _Iteration, size: int) -> int:
    vector = 4
    first = part.reduced
    others = [stride // size for j, stride in enumerate(part.into) if j != first]
    for number in (part.shape[first], *others):
        while number % vector:
            vector //= 2
    return vector


def last_power_of_2(number: int) -> int:
    """Return the largest power of 2 that is not larger, at least 1 (`last_pow2`)."""
    return 1 << max(number.bit_length() - 1, 0)


def accumulate_bytes(dtype: torch.dtype) -> int:
    """Return the size of the type that sums are accumulated in (`acc_type` on CUDA)."""
    if dtype.is_complex:
        return max(dtype.itemsize, 8)
    return max(dtype.itemsize, 4) if dtype.is_floating_point else 8


def _unrolling(dtype: torch.dtype) -> dict[str, int]:
    # 16-bit types are read in vectors of 8 (ReduceSumProdKernel.cu, ReduceMomentKernel.cu).
    return {"unroll": 4, "vector": 8} if dtype.itemsize == 2 else {}


def trace_sum(
    trace: KernelTrace,
    spec: TensorSpec,
    dims: set[int],
    gpu: GpuSpec,
    out_bytes: int | None = None,
) -> None:
    """Allocate and free the scratch memory of a sum or mean, in the type that the kernel reads."""
    trace_reduction(
        trace,
        spec,
        dims,
        gpu,
        accumulate_bytes(spec.dtype),
        out_bytes=out_bytes,
        **_unrolling(spec.dtype),
    )


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
    """Partial results have the type of the input (ReduceMaxValuesKernel.cu)."""
    trace.outputs()
    spec = call.tensor("self")
    trace_reduction(trace, spec, axes(spec, _dims_of(call)), gpu, spec.element_size)


@allocates("aten::any", "aten::all")
def logical(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Partial results are booleans of one byte (ReduceLogicKernel.cu)."""
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
    """Pairs of a value and its int64 index (ReduceArgMaxKernel.cu)."""
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
    """Integers are copied to the type of the output first (ReduceOps.cpp)."""
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or spec.numel == 0:
        return
    spec, copy = cast(trace, spec, output.dtype)
    trace_logsumexp(trace, spec, axes(spec, _dims_of(call)), gpu, output.numel, trace.outputs)
    trace.free(copy)


def trace_logsumexp(
    trace: KernelTrace,
    spec: TensorSpec,
    dims: set[int],
    gpu: GpuSpec,
    results: int,
    allocate_output: Callable[[], _Allocated],
) -> _Allocated:
    """`logsumexp_out_impl` of ReduceOps.cpp: amax, then the sum of shifted exponentials.

    Args:
        trace: allocations of the kernel.
        spec: the tensor that is reduced, not empty.
        dims: dimensions that are reduced.
        gpu: the GPU that runs the kernel.
        results: number of elements of the output.
        allocate_output: allocates it.

    Returns:
        What `allocate_output` returned.
    """
    largest = trace.scratch(results * spec.element_size)
    trace_reduction(trace, spec, dims, gpu, spec.element_size)
    absolute = trace.scratch(results * spec.element_size)
    infinite = trace.scratch(results)
    trace.free(infinite, absolute)
    shifted = TensorSpec(spec.shape, dense_strides(spec), spec.dtype)
    exponentials = trace.scratch(shifted.nbytes)
    allocated = allocate_output()
    trace_sum(trace, shifted, dims, gpu)
    trace.free(exponentials, largest)
    return allocated

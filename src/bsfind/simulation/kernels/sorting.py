"""Sorting, searching and cumulative sums (aten/src/ATen/native/cuda, torch 2.13).

Not modelled, and assumed to allocate their outputs alone: `unique`, whose results depend on values,
`multinomial`, `histc`, and `median` of a whole tensor.
"""

from __future__ import annotations

import math

import torch

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import (
    cast,
    contiguous,
    is_non_overlapping_and_dense,
    output_of_bytes,
    reads_contiguous,
)
from bsfind.simulation.kernels.reductions import axes, trace_reduction

_SHORT = 4096
_MANY_ROWS = 128
# From and below this number of rows, several blocks share a row from this length on
# (`should_use_mbtopk`).
_ROWS_OF_SEVERAL_BLOCKS = (
    (1, 21, 20000),
    (21, 41, 10000),
    (41, 81, 8000),
    (81, 200, 5000),
    (200, 800, 3000),
    (800, 4001, 800),
    (4001, 1 << 62, 400),
)


# ScanKernels.cpp, Sorting.cpp
allocates("aten::cummax", "aten::cummin")(reads_contiguous("self"))
allocates("aten::kthvalue")(reads_contiguous("self", copies_first=True))


@allocates("aten::cumsum", "aten::cumprod", "aten::logcumsumexp")
def cumulative(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`scan_dim` of ScanUtils.cuh: CUB where the tensor is a single line."""
    trace.outputs()
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or not spec.on_gpu or spec.dim == 0:
        return
    spec, copy = cast(trace, spec, output.dtype)
    spec, line = contiguous(trace, spec)
    if spec.numel and spec.numel == spec.shape[call["dim"]]:
        trace.free(trace.scratch(cub.scan(spec.numel, spec.element_size, gpu)))
    trace.free(line, copy)


@allocates("aten::sort")
def sort(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Short rows are sorted in place with their indices, long ones by segments (Sort.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    if spec.dim == 0 or spec.numel == 0:
        return
    length = spec.shape[call["dim"]]
    if length <= _SHORT:
        trace.scratch(length * 8)
        return
    output = call.outputs[0]
    if output is not None:
        _long_sort(trace, spec, output, call["dim"] % spec.dim, length, gpu)


def _long_sort(
    trace: KernelTrace, spec: TensorSpec, output: TensorSpec, dim: int, length: int, gpu: GpuSpec
) -> None:
    """Radix sorts of values and int64 indices (Sort.cu, `launch_stable_sort_kernel`)."""
    rows = spec.numel // length
    count, size = spec.numel, spec.element_size
    if spec.stride[dim] != 1 or not is_non_overlapping_and_dense(spec):
        trace.scratch(count * size)
    if output.stride[dim] != 1:  # sorted values and indices, before they are moved
        trace.scratch(count * size)
        trace.scratch(count * 8)
    if rows == 1:
        trace.scratch(count * 8)
        trace.scratch(cub.radix_sort(count, size, 8, 8 * size, gpu))
    elif rows < _MANY_ROWS:
        # Pairs of row and index are sorted by value, then by row.
        for _ in range(2):
            trace.scratch(count * 8)
        keys = trace.scratch(count * size)
        trace.free(trace.scratch(cub.radix_sort(count, size, 8, 8 * size, gpu)), keys)
        trace.scratch(cub.radix_sort(count, 8, 4, 8, gpu))
    else:
        trace.scratch(count * 8)
        trace.scratch(cub.segmented_sort(count, size, 8))


@allocates("aten::topk")
def topk(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Several blocks share a long row (TensorTopK.cpp, TensorTopK.cu `mbtopk`)."""
    trace.outputs()
    spec, _ = contiguous(trace, call.tensor("self"))
    if spec.dim == 0 or spec.numel == 0:
        return
    length = spec.shape[call["dim"]]
    rows = spec.numel // length
    if not any(
        few <= rows < many and length >= least for few, many, least in _ROWS_OF_SEVERAL_BLOCKS
    ):
        return
    # Six blocks of 256 threads fit a multiprocessor, by their registers.
    per_thread = -(-spec.numel // (gpu.sm_count * 6 * 256))
    blocks = rows * -(-length // (256 * min(max(per_thread, 4), 64)))
    values, desired = rows * spec.element_size, rows * max(4, spec.element_size)
    if gpu.torch_version >= torch_releases.TOPK_KEEPS_MASKS:
        desired *= 2
    if gpu.torch_version >= torch_releases.TOPK_COUNTS_LAST:
        sizes = [values, rows * 8, desired, blocks * 256 * 2, rows * 256 * 4]
    else:
        sizes = [values, rows * 4, rows * 8, desired, blocks * 256 * 2]
    handles = [trace.scratch(nbytes) for nbytes in (*sizes, blocks * 4, blocks * 4)]
    for _ in range(2):
        trace.free(trace.scratch(cub.scan_by_key(blocks)))
    trace.free(*reversed(handles))


@allocates("aten::mode")
def mode(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The kernel reads a contiguous tensor with the dimension last (TensorModeKernel.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    if spec.dim == 0:
        return
    dim = call["dim"] % spec.dim
    order = list(range(spec.dim))
    order[dim], order[-1] = order[-1], order[dim]
    contiguous(trace, spec.permuted(order))


@allocates("aten::searchsorted.Tensor", "aten::bucketize.Tensor")
def searchsorted(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Both operands are contiguous and of one type (BucketizationUtils.h)."""
    trace.outputs()
    values = call.tensor("self")
    bounds = call.tensor("boundaries" if call.operator == "aten::bucketize" else "sorted_sequence")
    common = torch.promote_types(values.dtype, bounds.dtype)
    bounds, bounds_copy = contiguous(trace, bounds)
    values, values_copy = contiguous(trace, values)
    if values.dtype != common:
        cast(trace, values, common)
        trace.free(values_copy)
    if bounds.dtype != common:
        cast(trace, bounds, common)
        trace.free(bounds_copy)


@allocates("aten::isin.Tensor_Tensor")
def isin(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A few elements are compared with all, many are sorted (native/TensorCompare.cpp)."""
    trace.outputs()
    elements, others = call.tensor("elements"), call.tensor("test_elements")
    if others.numel < 10 * elements.numel**0.145:
        trace.scratch(elements.numel * others.numel)
        trace.scratch(elements.numel)


@allocates("aten::bincount")
def bincount(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Minimum and maximum come first, in one pass since torch 2.13 (SummaryOps.cu)."""
    spec = call.tensor("self")
    if gpu.torch_version < torch_releases.BOTH_EXTREMES_AT_ONCE:
        for _ in range(2):
            extreme = trace.scratch(spec.element_size)
            trace_reduction(trace, spec, axes(spec, None), gpu, spec.element_size)
            trace.free(extreme)
        return
    handles = [trace.scratch(spec.element_size) for _ in range(2)]
    trace_reduction(trace, spec, axes(spec, None), gpu, 2 * spec.element_size)
    trace.outputs()
    trace.free(*handles)


@allocates("aten::randperm")
def randperm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Numbers are sorted by random keys with so many bits that ties are unlikely (Randperm.cu)."""
    trace.outputs()
    output = call.outputs[0]
    if output is None or not output.on_gpu or output.numel < 1:
        return
    count, size = output.numel, output.element_size
    trace.free(trace.scratch(size))
    enough = count - (6 * count**2 + 1) / (math.log(0.9) * 12)
    bits = min(64, math.ceil(math.log2(enough)))
    key = 4 if bits <= 32 else 8
    trace.scratch(count * size)
    for _ in range(2):
        trace.scratch(count * key)
    trace.scratch(cub.radix_sort(count, key, size, bits, gpu))


@allocates("aten::_coalesce")
def coalesce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Sorts flat indices and makes them unique (sparse/cuda/SparseCUDATensor.cu).

    `self` is the tensor of indices; the outputs are indices and values. With one sparse dimension
    the flat indices are the result, in a storage for all of them.
    """
    dims, count = call.tensor("self").shape
    nbytes = 8 * count
    flat = None
    if dims == 1:
        output_of_bytes(trace, 0, nbytes)
    else:
        flat = trace.scratch(nbytes)
    origins, offsets = trace.scratch(nbytes), trace.scratch(nbytes)
    trace.free(trace.scratch(cub.merge_sort(count, 8, 8)))
    trace.free(trace.scratch(cub.unique_by_key(count, 8, gpu)))
    trace.output(1)
    trace.output(0)
    trace.free(offsets, origins, flat)


@allocates("torchvision::nms")
def nms(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Boxes are sorted by score, and a bit for each pair says that they overlap.

    `nms_kernel` of torchvision/csrc/ops/cuda/nms_kernel.cu, without the bytes that newer releases need to
    find what is kept on the GPU (one or two for each box).
    """
    boxes, scores = call.tensor("dets"), call.tensor("scores")
    if boxes.numel == 0:
        trace.outputs()
        return
    count = boxes.shape[0]
    trace.scratch(scores.nbytes)
    order = trace.scratch(count * 8)
    sorted_boxes = trace.scratch(boxes.nbytes)
    pairs = trace.scratch(count * -(-count // 64) * 8)
    trace.outputs()
    trace.free(pairs, sorted_boxes, order)

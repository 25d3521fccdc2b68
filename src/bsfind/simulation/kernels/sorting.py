"""Sorting, searching and running sums (aten/src/ATen/native/cuda, torch 2.13).

Not modelled, and taken to allocate their outputs alone: `unique`, whose results depend on values,
`multinomial`, `histc`, and `median` of a whole tensor.
"""

from __future__ import annotations

import math

import torch

from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import cast, contiguous, is_non_overlapping_and_dense
from bsfind.simulation.kernels.reductions import axes, reduce_steps

_SHORT = 4096


@allocates("aten::cumsum", "aten::cumprod", "aten::logcumsumexp")
def running(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`scan_dim` of ScanUtils.cuh: CUB where the tensor is a single line."""
    steps.outputs()
    spec = call.tensor("self")
    output = call.outputs[0]
    if output is None or not spec.on_gpu or spec.dim == 0:
        return
    spec, copy = cast(steps, spec, output.dtype)
    spec, line = contiguous(steps, spec)
    if spec.numel and spec.numel == spec.shape[call["dim"]]:
        steps.free(steps.scratch(cub.scan(spec.numel, spec.element_size)))
    steps.free(line, copy)


@allocates("aten::cummax", "aten::cummin")
def running_extreme(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The input contiguous (ScanKernels.cpp)."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))


@allocates("aten::sort")
def sort(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Short rows are sorted in place, beside their numbers; long ones by segments (Sort.cpp)."""
    steps.outputs()
    spec = call.tensor("self")
    if spec.dim == 0 or spec.numel == 0:
        return
    length = spec.shape[call["dim"]]
    if length <= _SHORT:
        steps.scratch(length * 8)
        return
    output = call.outputs[0]
    if output is not None:
        _long_sort(steps, spec, output, call["dim"] % spec.dim, length, gpu)


def _long_sort(
    steps: Steps, spec: TensorSpec, output: TensorSpec, dim: int, length: int, gpu: CudaTarget
) -> None:
    """Radix sorts of values and int64 places (Sort.cu, `launch_stable_sort_kernel`)."""
    rows = spec.numel // length
    count, size = spec.numel, spec.element_size
    if spec.stride[dim] != 1 or not is_non_overlapping_and_dense(spec):
        steps.scratch(count * size)
    if output.stride[dim] != 1:  # sorted values and places, before they are moved
        steps.scratch(count * size)
        steps.scratch(count * 8)
    if rows == 1:
        steps.scratch(count * 8)
        steps.scratch(cub.radix_sort(count, size, 8, 8 * size, gpu))
    elif rows < _MANY_ROWS:
        # Pairs of row and place are sorted by value, then by row.
        for _ in range(2):
            steps.scratch(count * 8)
        keys = steps.scratch(count * size)
        steps.free(steps.scratch(cub.radix_sort(count, size, 8, 8 * size, gpu)), keys)
        steps.scratch(cub.radix_sort(count, 8, 4, 8, gpu))
    else:
        steps.scratch(count * 8)
        steps.scratch(cub.segmented_sort(count, size, 8))


_MANY_ROWS = 128


@allocates("aten::topk")
def topk(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The input contiguous (TensorTopK.cpp); long rows by several blocks (TensorTopK.cu `mbtopk`)."""
    steps.outputs()
    spec, _ = contiguous(steps, call.tensor("self"))
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
    handles = [
        steps.scratch(nbytes)
        for nbytes in (
            rows * spec.element_size,
            rows * 8,
            rows * 2 * max(4, spec.element_size),
            blocks * 256 * 2,
            rows * 256 * 4,
            blocks * 4,
            blocks * 4,
        )
    ]
    for _ in range(2):
        steps.free(steps.scratch(cub.scan(blocks, 4) + 256))
    steps.free(*reversed(handles))


# Rows from, below, and the length from which several blocks work on a row (`should_use_mbtopk`).
_ROWS_OF_SEVERAL_BLOCKS = (
    (1, 21, 20000),
    (21, 41, 10000),
    (41, 81, 8000),
    (81, 200, 5000),
    (200, 800, 3000),
    (800, 4001, 800),
    (4001, 1 << 62, 400),
)


@allocates("aten::mode")
def mode(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The dimension last, in a contiguous tensor (TensorModeKernel.cpp)."""
    steps.outputs()
    spec = call.tensor("self")
    if spec.dim == 0:
        return
    dim = call["dim"] % spec.dim
    order = list(range(spec.dim))
    order[dim], order[-1] = order[-1], order[dim]
    moved = TensorSpec(
        tuple(spec.shape[at] for at in order), tuple(spec.stride[at] for at in order), spec.dtype
    )
    contiguous(steps, moved)


@allocates("aten::kthvalue")
def kthvalue(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The copy of the input comes before the outputs (Sorting.cpp)."""
    contiguous(steps, call.tensor("self"))
    steps.outputs()


@allocates("aten::searchsorted.Tensor", "aten::bucketize.Tensor")
def searchsorted(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Both contiguous and of one type (BucketizationUtils.h)."""
    steps.outputs()
    values = call.tensor("self")
    bounds = call.tensor("boundaries" if call.operator == "aten::bucketize" else "sorted_sequence")
    common = torch.promote_types(values.dtype, bounds.dtype)
    bounds, bounds_copy = contiguous(steps, bounds)
    values, values_copy = contiguous(steps, values)
    if values.dtype != common:
        cast(steps, values, common)
        steps.free(values_copy)
    if bounds.dtype != common:
        cast(steps, bounds, common)
        steps.free(bounds_copy)


@allocates("aten::isin.Tensor_Tensor")
def isin(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Few elements are compared with all, many are sorted (native/TensorCompare.cpp)."""
    steps.outputs()
    elements, others = call.tensor("elements"), call.tensor("test_elements")
    if others.numel < 10 * elements.numel**0.145:
        steps.scratch(elements.numel * others.numel)
        steps.scratch(elements.numel)


@allocates("aten::bincount")
def bincount(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The smallest and largest number first, in one pass since torch 2.13 (SummaryOps.cu)."""
    spec = call.tensor("self")
    if gpu.torch_version < (2, 13):
        for _ in range(2):
            extreme = steps.scratch(spec.element_size)
            reduce_steps(steps, spec, axes(spec, None), gpu, spec.element_size)
            steps.free(extreme)
        return
    handles = [steps.scratch(spec.element_size) for _ in range(2)]
    reduce_steps(steps, spec, axes(spec, None), gpu, 2 * spec.element_size)
    steps.outputs()
    steps.free(*handles)


@allocates("aten::randperm")
def randperm(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Numbers are sorted by random keys of as many bits as make ties unlikely (Randperm.cu)."""
    steps.outputs()
    output = call.outputs[0]
    if output is None or not output.on_gpu or output.numel < 1:
        return
    count, size = output.numel, output.element_size
    steps.free(steps.scratch(size))
    enough = count - (6 * count**2 + 1) / (math.log(0.9) * 12)
    bits = min(64, math.ceil(math.log2(enough)))
    key = 4 if bits <= 32 else 8
    steps.scratch(count * size)
    for _ in range(2):
        steps.scratch(count * key)
    steps.scratch(cub.radix_sort(count, key, size, bits, gpu))

"""Indexing by tensors, masks, and scattering (aten/src/ATen/native/cuda/Indexing.cu and others, torch 2.13).

The number of elements that a mask selects is read from the shape of the output or of the values; if
one value is broadcast, 0 is assumed.
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
    dense,
    elementwise,
)
from bsfind.simulation.kernels.reductions import axes, trace_reduction

_MASKS = (torch.bool, torch.uint8)


@allocates("aten::index")
def index(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Masks become indices, int32 becomes int64 (`make_info` of TensorAdvancedIndexing.cpp)."""
    output = call.outputs[0]
    selected = 0
    if output is not None:
        rest = _rest(call.tensor("self"), call["indices"])
        selected = output.numel // rest if rest else 0
    handles = _prepared(call, trace, gpu, selected)[1]
    trace.outputs()
    trace.free(*handles)


@allocates("aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
def index_put(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Accumulation, and any call if it must be deterministic, sorts the indices first."""
    trace.outputs()
    spec, values, given = call.tensor("self"), call.tensor("values"), call["indices"]
    if spec.numel == 0:
        return
    if call["accumulate"] or gpu.deterministic:
        _sorted_index_put(call, gpu, trace)
        return
    if not values.on_gpu and values.numel == 1 and len(given) == 1 and _is_mask(given[0]):
        return  # `canDispatchToMaskedFill`
    rest = _rest(spec, given)
    selected = values.numel // rest if rest else 0
    trace.free(*_prepared(call, trace, gpu, selected)[1])


def _sorted_index_put(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`index_put_with_sort_kernel` of Indexing.cu."""
    spec, values, given = call.tensor("self"), call.tensor("values"), call["indices"]
    if call.operator == "aten::index_put":
        spec = dense(spec)
    spec, copied = contiguous(trace, spec)
    rest = _rest(spec, given)
    masked = any(_is_mask(item) for item in given)
    selected = values.numel // rest if masked and rest else 0
    indices, handles = _prepared(call, trace, gpu, selected, same_strides=False)
    dims = [dim for dim, item in enumerate(indices) if item is not None]
    defined = [item for item in indices if item is not None]
    if not defined:
        return
    if masked and not selected:
        trace.free(*handles, copied)
        return
    linear = None
    for item in defined:
        if not call.arguments.get("unsafe", False) and item.numel:
            _bounds(trace, item, gpu)
        wrapped, product = trace.scratch(item.numel * 8), trace.scratch(item.numel * 8)
        trace.free(wrapped)
        if linear is None:
            linear = product
        else:
            trace.free(product)
    trace.free(*handles)
    count = elementwise(*defined).numel
    before, after = math.prod(spec.shape[: dims[0]]), math.prod(spec.shape[dims[-1] + 1 :])
    expanded = None
    whole = count * before * after
    if values.numel < whole or not values.is_contiguous():
        expanded = trace.scratch(whole * values.element_size)
    if count and after:
        permuted = None
        if dims[-1] - dims[0] + 1 != len(dims):  # not adjacent: moved to the front, in a copy
            order = dims + [dim for dim in range(spec.dim) if dim not in dims]
            permuted = contiguous(trace, spec.permuted(order))[1]
        held = [trace.scratch(count * 8) for _ in range(3)]
        bits = max(1, (spec.numel // after).bit_length())
        held.append(trace.scratch(cub.radix_sort(count, 8, 8, bits, gpu)))
        trace.free(*reversed(held), permuted)
    trace.free(expanded, linear, copied)


def _is_mask(item: TensorSpec | None) -> bool:
    return item is not None and item.dtype in _MASKS


def _bounds(trace: KernelTrace, item: TensorSpec, gpu: GpuSpec) -> None:
    """`index.max() < size` and `index.min() >= -size` (`wrapIndexOnce`), in one pass since torch 2.13."""
    if gpu.torch_version < torch_releases.BOTH_EXTREMES_AT_ONCE:
        for _ in range(2):
            extreme = trace.scratch(8)
            line, copy = contiguous(trace, item)
            trace_reduction(trace, line, axes(line, None), gpu, 8, out_bytes=8)
            trace.free(copy)
            trace.free(trace.scratch(1), extreme)
        return
    extremes = trace.scratch(8), trace.scratch(8)
    line, copy = contiguous(trace, item)
    trace_reduction(trace, line, axes(line, None), gpu, 16, out_bytes=8)
    trace.free(copy)
    for _ in range(2):
        trace.free(trace.scratch(1))
    trace.free(*extremes)


def _rest(spec: TensorSpec, indices: tuple[TensorSpec | None, ...]) -> int:
    """Return the elements of the dimensions that are not indexed."""
    count = 1
    dim = 0
    for item in indices:
        if item is None:
            count *= spec.shape[dim]
            dim += 1
        else:
            dim += item.dim if item.dtype in _MASKS else 1
    return count * math.prod(spec.shape[dim:])


def _prepared(
    call: Call, trace: KernelTrace, gpu: GpuSpec, selected: int, *, same_strides: bool = True
) -> tuple[list[TensorSpec | None], list[int | None]]:
    """Return int64 indices of one shape, and the handles of their memory in the order of freeing."""
    indices: list[TensorSpec | None] = []
    handles: list[int | None] = []
    for item in call["indices"]:
        if item is not None and _is_mask(item):
            handles.append(_nonzero(trace, item, gpu, selected))
            columns = TensorSpec((selected,), (1,), torch.int64)
            indices += [columns] * item.dim
        else:
            indices.append(item)
    defined = [item for item in indices if item is not None]
    if not defined:
        return indices, handles
    broadcast = elementwise(*defined)
    result: list[TensorSpec | None] = []
    for item in indices:
        if item is None:
            result.append(None)
            continue
        shaped = _expanded(item, broadcast.shape)
        if shaped.dtype != torch.int64:
            shaped, handle = cast(trace, shaped, torch.int64)
            handles.append(handle)
        result.append(shaped)
    strides = {item.stride for item in result if item is not None}
    if same_strides and len(strides) > 1:
        for at, one in enumerate(result):
            if one is not None:
                result[at], handle = contiguous(trace, one)
                handles.append(handle)
    return result, handles


def _expanded(item: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    missing = len(shape) - item.dim
    stride = (0,) * missing + tuple(
        0 if size == 1 and shape[missing + at] != 1 else item.stride[at]
        for at, size in enumerate(item.shape)
    )
    return TensorSpec(shape, stride, item.dtype)


def _nonzero(
    trace: KernelTrace, mask: TensorSpec, gpu: GpuSpec, selected: int | None
) -> int | None:
    """`nonzero_cuda_out_impl` of Nonzero.cu; returns the handle of the indices.

    `selected` is the number of nonzero elements; None: the indices are the kernel's output.
    """
    mask, copy = contiguous(trace, mask)
    number = trace.scratch(4)
    trace.free(trace.scratch(cub.reduce_sum(mask.numel, 4, gpu)))
    if selected is None:
        trace.outputs()
    result = trace.scratch((selected or 0) * mask.dim * 8)
    if mask.dim:
        trace.free(trace.scratch(cub.select_flagged(mask.numel, gpu)))
    trace.free(number, copy)
    return result


@allocates("aten::nonzero")
def nonzero(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The number of results, the results, and `DeviceSelect` (Nonzero.cu)."""
    _nonzero(trace, call.tensor("self"), gpu, None)


@allocates("aten::masked_select")
def masked_select(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Indexing by the expanded mask (`masked_select_out_cuda_impl`)."""
    mask = call.tensor("mask")
    output = call.outputs[0]
    shape = elementwise(mask, call.tensor("self")).shape
    indices = _nonzero(trace, _expanded(mask, shape), gpu, output.numel if output else 0)
    trace.outputs()
    trace.free(indices)


@allocates("aten::masked_scatter", "aten::masked_scatter_")
def masked_scatter(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A prefix sum of the mask gives indices into the source (`launch_masked_scatter_kernel`)."""
    trace.outputs()
    spec, mask = call.tensor("self"), call.tensor("mask")
    count = elementwise(spec, mask).numel
    trace.scratch(count * 8)
    contiguous(trace, _expanded(mask, elementwise(spec, mask).shape))
    contiguous(trace, call.tensor("source"))
    trace.free(trace.scratch(cub.scan(count, 8, gpu)))


@allocates("aten::where.self")
def where(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Operands of another type are cast, numbers on the host are copied (TensorCompare.cpp)."""
    output = call.outputs[0]
    if output is None:
        return
    handles = []
    for name in ("self", "other"):
        operand = call.tensor(name)
        if not operand.on_gpu:
            handles.append(trace.scratch(operand.numel * output.element_size))
        elif operand.dtype != output.dtype:
            handles.append(cast(trace, operand, output.dtype)[1])
    trace.outputs()
    trace.free(*reversed(handles))


@allocates("aten::scatter_reduce", "aten::scatter_reduce_")
def scatter_reduce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Means count what was added (`scatter_reduce_two` of TensorAdvancedIndexing.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    if call["reduce"] == "mean" and spec.numel:
        trace.scratch(call.tensor("src").nbytes)
        trace.scratch(spec.nbytes)
        trace.scratch(spec.numel)


@allocates("aten::index_reduce", "aten::index_reduce_")
def index_reduce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Means count what was added (`index_reduce_func_cuda_impl`)."""
    trace.outputs()
    spec = call.tensor("self")
    if call["reduce"] == "mean" and spec.numel:
        trace.scratch(spec.nbytes)
        trace.free(trace.scratch(call.tensor("source").nbytes))
        trace.free(trace.scratch(spec.numel))

"""Operators on lists of tensors (aten/src/ATen/native/cuda/ForeachReduceOp.cu, torch 2.13)."""

from __future__ import annotations

import math

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, is_non_overlapping_and_dense
from bsfind.simulation.kernels.reductions import axes, trace_reduction

_CHUNK = 65536


def _in_one_kernel(tensors: tuple[TensorSpec, ...]) -> bool:
    """`can_use_fast_route` of native/ForeachUtils.h."""
    first = tensors[0].dtype
    return all(
        spec.dtype == first and spec.on_gpu and is_non_overlapping_and_dense(spec)
        for spec in tensors
    )


def _chunks(tensors: tuple[TensorSpec, ...]) -> int:
    return max(-(-spec.numel // _CHUNK) for spec in tensors)


@allocates("aten::_foreach_norm")
def foreach_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A partial norm for each chunk of 65536 elements."""
    tensors = call["self"]
    order = float(call["ord"])
    fast = (
        _in_one_kernel(tensors)
        and order in (1.0, 2.0, math.inf)
        and tensors[0].dtype.is_floating_point
    )
    if fast:
        size = max(4, tensors[0].element_size)
        trace.scratch(len(tensors) * _chunks(tensors) * size)
        return
    for index, spec in enumerate(tensors):
        trace.output(index)
        trace_reduction(
            trace,
            spec,
            axes(spec, None),
            gpu,
            max(4, spec.element_size),
            out_bytes=spec.element_size,
        )


@allocates("aten::_foreach_max")
def foreach_max(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """An extreme for each chunk of 65536 elements."""
    tensors = call["self"]
    if _in_one_kernel(tensors):
        trace.outputs()
        trace.scratch(len(tensors) * _chunks(tensors) * tensors[0].element_size)
        return
    for index, spec in enumerate(tensors):
        trace.output(index)
        line, copy = contiguous(trace, spec)
        trace_reduction(trace, line, axes(line, None), gpu, line.element_size)
        trace.free(copy)

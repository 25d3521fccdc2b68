"""Operators that move elements, where they copy more than once (torch 2.13)."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, dense_strides
from bsfind.simulation.kernels.reductions import axes, trace_reduction


@allocates("aten::roll")
def roll(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """One dimension after another, each of a contiguous tensor (`roll_cuda` of TensorTransformations.cu)."""
    spec, copy = contiguous(trace, call.tensor("self"))
    held = []
    for _ in range(len(call["dims"]) - 1):
        held.append(trace.scratch(spec.nbytes))
        trace.free(copy)
        copy = None
    trace.outputs()
    trace.free(*reversed(held), copy)


@allocates("aten::reflection_pad1d", "aten::reflection_pad2d", "aten::reflection_pad3d")
def reflection_pad(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The input contiguous (ReflectionPad.cu)."""
    trace.outputs()
    contiguous(trace, call.tensor("self"))


@allocates("aten::renorm")
def renorm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Norms, in float32 or wider, and factors (native/ReduceOps.cpp `renorm_out`)."""
    trace.outputs()
    spec = call.tensor("self")
    kept = call["dim"] % max(spec.dim, 1)
    count = spec.shape[kept]
    trace.scratch(count * max(4, spec.element_size))
    dims = set(range(spec.dim)) - {kept}
    trace_reduction(trace, spec, dims, gpu, max(4, spec.element_size), out_bytes=4)
    if spec.element_size < 4:
        trace.free(trace.scratch(count * spec.element_size))


@allocates("aten::equal")
def equal(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Comparisons, and whether all hold (`cuda_equal` of cuda/Equal.cpp); not of a tensor with itself."""
    spec = call.tensor("self")
    if call.tensor("other").shape != spec.shape:
        return
    trace.scratch(spec.numel)
    trace.scratch(1)
    compared = TensorSpec(spec.shape, dense_strides(spec), torch.bool)
    trace_reduction(trace, compared, axes(compared, None), gpu, 1)


@allocates("aten::unfold_backward")
def unfold_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Places along the dimension, as int64 (native/UnfoldBackward.h)."""
    trace.outputs()
    trace.scratch(call["input_sizes"][call["dim"]] * 8)

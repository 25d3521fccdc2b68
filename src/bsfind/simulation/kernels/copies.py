"""Operators that move elements, where they copy more than once (torch 2.13)."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, dense_strides
from bsfind.simulation.kernels.reductions import axes, reduce_steps


@allocates("aten::roll")
def roll(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """One dimension after another, each of a contiguous tensor (`roll_cuda` of TensorTransformations.cu)."""
    spec, copy = contiguous(steps, call.tensor("self"))
    held = []
    for _ in range(len(call["dims"]) - 1):
        held.append(steps.scratch(spec.nbytes))
        steps.free(copy)
        copy = None
    steps.outputs()
    steps.free(*reversed(held), copy)


@allocates("aten::reflection_pad1d", "aten::reflection_pad2d", "aten::reflection_pad3d")
def reflection_pad(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The input contiguous (ReflectionPad.cu)."""
    steps.outputs()
    contiguous(steps, call.tensor("self"))


@allocates("aten::renorm")
def renorm(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Norms, in float32 or wider, and factors (native/ReduceOps.cpp `renorm_out`)."""
    steps.outputs()
    spec = call.tensor("self")
    kept = call["dim"] % max(spec.dim, 1)
    count = spec.shape[kept]
    steps.scratch(count * max(4, spec.element_size))
    dims = set(range(spec.dim)) - {kept}
    reduce_steps(steps, spec, dims, gpu, max(4, spec.element_size), out_bytes=4)
    if spec.element_size < 4:
        steps.free(steps.scratch(count * spec.element_size))


@allocates("aten::equal")
def equal(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Comparisons, and whether all hold (`cuda_equal` of cuda/Equal.cpp); not of a tensor with itself."""
    spec = call.tensor("self")
    if call.tensor("other").shape != spec.shape:
        return
    steps.scratch(spec.numel)
    steps.scratch(1)
    compared = TensorSpec(spec.shape, dense_strides(spec), torch.bool)
    reduce_steps(steps, compared, axes(compared, None), gpu, 1)


@allocates("aten::unfold_backward")
def unfold_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Places along the dimension, as int64 (native/UnfoldBackward.h)."""
    steps.outputs()
    steps.scratch(call["input_sizes"][call["dim"]] * 8)

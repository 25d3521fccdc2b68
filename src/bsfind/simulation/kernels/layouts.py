"""Strides of new tensors, and the copies that kernels make of tensors in another layout or type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, Rule, TensorSpec


def cast(trace: KernelTrace, spec: TensorSpec, dtype: torch.dtype) -> tuple[TensorSpec, int | None]:
    """Copy a tensor of another type; returns the tensor to read and the handle of the copy."""
    if spec.dtype == dtype:
        return spec, None
    copied = dense(spec, dtype)
    return copied, trace.scratch(copied.nbytes)


def contiguous(trace: KernelTrace, spec: TensorSpec) -> tuple[TensorSpec, int | None]:
    """Copy a tensor that is not contiguous; returns the tensor to read and the handle of the copy."""
    return contiguous_in(trace, spec, torch.contiguous_format)


def reads_contiguous(*operands: str, copies_first: bool = False) -> Rule:
    """Return the rule of a kernel that reads contiguous tensors and copies those that are not.

    Args:
        operands: names of the arguments that it reads, in order; an absent one is skipped.
        copies_first: whether it makes the copies before its outputs.
    """

    def rule(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
        if not copies_first:
            trace.outputs()
        for name in operands:
            operand = call.maybe_tensor(name)
            if operand is not None:
                contiguous(trace, operand)

    return rule


def contiguous_in(
    trace: KernelTrace, spec: TensorSpec, memory_format: torch.memory_format
) -> tuple[TensorSpec, int | None]:
    """Copy a tensor that is not contiguous in a memory format."""
    if spec.is_contiguous(memory_format):
        return spec, None
    stride = row_major(spec.shape)
    if memory_format != torch.contiguous_format:
        moved = row_major((spec.shape[0], *spec.shape[2:], spec.shape[1]))
        stride = (moved[0], moved[-1], *moved[1:-1])
    copied = TensorSpec(spec.shape, stride, spec.dtype)
    return copied, trace.scratch(copied.nbytes)


def dense(spec: TensorSpec, dtype: torch.dtype | None = None) -> TensorSpec:
    """Return what `empty_like` makes of a tensor."""
    return TensorSpec(spec.shape, dense_strides(spec), dtype or spec.dtype)


def dense_strides(spec: TensorSpec) -> tuple[int, ...]:
    """Return the strides that `empty_like` gives (c10 `infer_dense_strides`, torch 2.13)."""
    if is_non_overlapping_and_dense(spec):
        return spec.stride
    strides = [0] * spec.dim
    step = 1
    for dim in sorted_dimensions(
        spec.dim, lambda a, b: comes_after(spec.shape, (spec.stride,), a, b)
    ):
        strides[dim] = step
        step *= max(spec.shape[dim], 1)
    return tuple(strides)


def elementwise(*specs: TensorSpec, dtype: torch.dtype | None = None) -> TensorSpec:
    """Return the new output of an elementwise operator (`TensorIterator`).

    Args:
        specs: the inputs, which are broadcast against each other.
        dtype: type of the output; None: that of the first input.
    """
    dtype = dtype or specs[0].dtype
    dim = max(spec.dim for spec in specs)
    shape = [1] * dim
    for spec in specs:
        for at, size in enumerate(spec.shape, start=dim - spec.dim):
            if shape[at] == 1:
                shape[at] = size
    shaped = tuple(shape)
    if all(spec.shape == shaped for spec in specs):
        for memory_format in (
            torch.contiguous_format,
            torch.channels_last if dim == 4 else torch.channels_last_3d,
        ):
            if all(spec.is_contiguous(memory_format) for spec in specs):
                stride = specs[0].stride if memory_format != torch.contiguous_format else None
                return TensorSpec(shaped, stride or row_major(shaped), dtype)
        if all(
            spec.stride == specs[0].stride and is_non_overlapping_and_dense(spec) for spec in specs
        ):
            return TensorSpec(shaped, specs[0].stride, dtype)
    strides = [
        tuple(
            0 if spec.shape[at] == 1 and shape[at + dim - spec.dim] != 1 else stride
            for at, stride in enumerate(spec.stride)
        )
        for spec in specs
    ]
    strides = [(0,) * (dim - len(stride)) + stride for stride in strides]

    result = [0] * dim
    step = 1
    for at in sorted_dimensions(dim, lambda a, b: comes_after(shape, strides, a, b)):
        result[at] = step
        step *= shape[at]
    return TensorSpec(shaped, tuple(result), dtype)


def output_of_bytes(trace: KernelTrace, index: int, nbytes: int) -> None:
    """Allocate an output whose storage is larger than its elements need.

    Such outputs are allocated in full size and shrunk by `resize_`.
    """
    before = len(trace.events)
    trace.output(index)
    if len(trace.events) > before:
        trace.events[-1] = ("output", index, int(nbytes))


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_line(spec: TensorSpec) -> bool:
    """Return whether a tensor can be viewed as one dimension (`computeStride` of TensorUtils.cpp)."""
    sizes = [(n, s) for n, s in zip(spec.shape, spec.stride, strict=True) if n != 1]
    return spec.numel == 0 or all(
        outer[1] == inner[0] * inner[1] for outer, inner in pairwise(sizes)
    )


def is_non_overlapping_and_dense(spec: TensorSpec) -> bool:
    """Return whether some order of dimensions makes a tensor contiguous."""
    expected = 1
    for size, stride in sorted(zip(spec.shape, spec.stride, strict=True), key=lambda d: d[1]):
        if size != 1:
            if stride != expected and spec.numel:
                return False
            expected *= size
    return True


def suggested_format(spec: TensorSpec) -> torch.memory_format:
    """Return what `Tensor.suggest_memory_format` does (c10/core/MemoryFormat.h, torch 2.13)."""
    if spec.dim == 4 and _looks_channels_last(spec, (1, 3, 2, 0)):
        return torch.channels_last
    if spec.dim == 5 and _looks_channels_last(spec, (1, 4, 3, 2, 0)):
        return torch.channels_last_3d
    return torch.contiguous_format


def sorted_dimensions(count: int, comes_after: Callable[[int, int], int]) -> list[int]:
    """Order dimensions, the fastest first, by a comparison that can be undecided (0).

    The insertion sort of `TensorIteratorBase::reorder_dimensions`: with undecided comparisons the
    result depends on the algorithm.
    """
    order = list(range(count - 1, -1, -1))
    for first in range(1, count):
        at = first
        for before in range(first - 1, -1, -1):
            comparison = comes_after(order[before], order[at])
            if comparison > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif comparison < 0:
                break
    return order


def comes_after(
    shape: Sequence[int], operands: Iterable[Sequence[int]], first: int, second: int
) -> int:
    """Compare two dimensions as `TensorIteratorBase::reorder_dimensions` does, torch 2.13.

    Args:
        shape: sizes of the iteration.
        operands: strides of each operand, all in elements or all in bytes.
        first: a dimension.
        second: another.

    Returns:
        1: `first` is slower than `second`; -1: it is faster; 0: the operands do not decide.
    """
    for strides in operands:
        a, b = strides[first], strides[second]
        if a == 0 or b == 0:
            continue
        if a != b:
            return -1 if a < b else 1
        if shape[first] > shape[second]:
            return 1
    return 0


def _looks_channels_last(spec: TensorSpec, order: tuple[int, ...]) -> bool:
    smallest = 0
    if spec.stride[1] == 0:
        return False
    for dim in order:
        size, stride = spec.shape[dim], spec.stride[dim]
        if size == 0 or stride < smallest:
            return False
        # N111 and the like look like both: they count as contiguous.
        if dim == 0 and smallest == spec.stride[1]:
            return False
        smallest = stride * max(size, 1)
    return True

"""Kernels that copy many tensors at once, with a table of the copies on the GPU.

aten/src/ATen/native/cuda/TensorShape.cu, torch 2.6-2.13: `pack_vecs` puts several lists of 64-bit numbers
into one tensor.
"""

from __future__ import annotations

import math

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import is_non_overlapping_and_dense

_BLOCK = 128
_TILE = 16 * _BLOCK
"""Bytes that a block of threads copies in one go."""


def _up(value: int, step: int) -> int:
    return -(-value // step)


@allocates("aten::split_with_sizes_copy.out")
def split_with_sizes_copy(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """For each split: two addresses, its size, a running sum; and an index for each block of threads."""
    source, dim = call.tensor("self"), call["dim"] % call.tensor("self").dim
    outputs: tuple[TensorSpec, ...] = call["out"]
    if not all(
        is_non_overlapping_and_dense(each) and each.dtype == source.dtype
        for each in (source, *outputs)
    ):
        return
    sizes = [n * source.stride[dim] * source.element_size for n in call["split_sizes"]]
    chunks = math.prod(source.shape[:dim])
    blocks = sum(_up(size, _TILE) for size in sizes)
    most = gpu.sm_count * gpu.max_threads_per_sm // _BLOCK * 2
    rounds = _up(blocks * chunks, most)
    rounds_per_chunk = _up(rounds, min(math.ceil(math.sqrt(rounds)), chunks)) if rounds else 1
    blocks = sum(_up(size, _TILE * rounds_per_chunk) for size in sizes)
    trace.free(trace.scratch(8 * (4 * len(sizes) + 1 + blocks)))


@allocates("aten::_chunk_cat")
def chunk_cat(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """For each tensor: an address, four sizes, two running sums; and an index for each block of threads."""
    tensors: tuple[TensorSpec, ...] = call["tensors"]
    out, dim, chunks = call.maybe_tensor("out"), call["dim"] % tensors[0].dim, call["num_chunks"]
    dtype = tensors[0].dtype
    made = out.dtype if out is not None else dtype
    is_cast = (dtype, made) == (torch.bfloat16, torch.float32)
    if not all(map(is_non_overlapping_and_dense, tensors)) or not (made == dtype or is_cast):
        for tensor in tensors:  # what is not a multiple is padded, then all are joined
            length = _up(tensor.shape[dim], chunks) * chunks
            if length != tensor.shape[dim]:
                trace.scratch(tensor.nbytes // tensor.shape[dim] * length)
        return
    sizes = [
        _up(tensor.shape[dim], chunks) * math.prod(tensor.shape[dim + 1 :]) * made.itemsize
        for tensor in tensors
    ]
    blocks = sum(_up(size, _TILE) for size in sizes)
    trace.free(trace.scratch(8 * (6 * len(sizes) + 2 + blocks)))

"""Embeddings: their gradients are summed after the indices have been sorted.

aten/src/ATen/native/cuda/Embedding.cu, EmbeddingBag.cu and EmbeddingBackwardKernel.cu. Compared with
the allocations of torch 2.9-2.14.
"""

from __future__ import annotations

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, is_line

_FEW_INDICES = 3072
_ROWS_PER_THREAD = 10
_WARP = 32
_MAX_THREADS = 1024
_BLOCKS_PER_SM = 4


@allocates("aten::embedding")
def embedding(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`index_select` by the flattened indices (`embedding_symint` of native/Embedding.cpp)."""
    indices = call.tensor("indices")
    copy = None if is_line(indices) else trace.scratch(indices.nbytes)
    trace.outputs()
    trace.free(copy)


@allocates("aten::embedding_dense_backward")
def embedding_dense_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Up to 3072 indices go to a kernel without scratch memory (`embedding_dense_backward_cuda`)."""
    gradient, indices = call.tensor("grad_output"), call.tensor("indices")
    handles = [contiguous(trace, indices)[1], contiguous(trace, gradient)[1]]
    if indices.numel <= _FEW_INDICES and not call["scale_grad_by_freq"]:
        trace.outputs()
    else:
        few = _are_few_words(indices.numel, call["num_weights"], gradient.shape[-1], gpu)
        _sorted_backward(call, gradient, gpu, trace, by_atomics=few)
    trace.free(*handles)


@allocates("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Sizes of the bags, the bag of each index, the output, indices of the maxima (EmbeddingBag.cu)."""
    for index in (2, 1, 0, 3):
        trace.output(index)


@allocates("aten::_embedding_bag_backward", "aten::_embedding_bag_dense_backward")
def embedding_bag_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Sums and means sort the indices, as embeddings do; maxima are scattered."""
    gradient = call.tensor("grad")
    if call.arguments.get("sparse"):
        _sparse_bags_backward(call, trace)
        return
    contiguous(trace, gradient)
    if call["mode"] != 2:
        _sorted_backward(call, gradient, gpu, trace)


def _sparse_bags_backward(call: Call, trace: KernelTrace) -> None:
    """A row of the gradient for each index, divided for means (`_embedding_bag_sparse_backward`)."""
    gradient = call.tensor("grad")
    trace.outputs()
    if call["mode"] == 1:
        size = gradient.element_size
        bags = [trace.scratch(gradient.shape[0] * size) for _ in range(2)]
        trace.free(bags[1], bags[0], trace.scratch(call.tensor("indices").numel * size))


@allocates("aten::embedding_renorm_")
def embedding_renorm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Indices are sorted and made unique (`embedding_renorm_cuda_`)."""
    indices = call.tensor("indices")
    count, size = indices.numel, indices.element_size
    for _ in range(2):
        trace.scratch(count * size)
    handles = [trace.scratch(count * size) for _ in range(2)]
    trace.free(*reversed(handles))
    trace.scratch(count * size)
    trace.scratch(8)
    trace.scratch(cub.select_flagged(count, gpu))


def _sorted_backward(
    call: Call, gradient: TensorSpec, gpu: GpuSpec, trace: KernelTrace, *, by_atomics: bool = False
) -> None:
    """`embedding_backward_cuda_kernel` on sorted indices."""
    count, size = call.tensor("indices").numel, call.tensor("indices").element_size
    width, words = gradient.shape[-1], call["num_weights"]
    if count == 0:
        return
    held = [trace.scratch(count * size) for _ in range(2)]  # sorted indices and their positions
    places = trace.scratch(count * size)
    fewer_bits = gpu.torch_version >= torch_releases.EMBEDDING_SORTS_FEWER_BITS
    bits = max(int(words).bit_length(), 1) if fewer_bits else 8 * size
    temporary = trace.scratch(cub.radix_sort(count, size, size, bits, gpu))
    trace.free(temporary, places)
    if call["scale_grad_by_freq"]:
        held.append(trace.scratch(count * size))
        for _ in range(2):  # two scans by key; the size is that of torch 2.13
            trace.free(trace.scratch(max(1279, 511 + count * 10 // 1023 + 512)))
    trace.outputs()
    segments = min(count, words)
    held.append(trace.scratch(count * size))
    held.append(trace.scratch(8))
    places = trace.scratch(count * size)
    trace.free(trace.scratch(cub.unique_by_key(count, size, gpu)), places)
    held += [trace.scratch(segments * size) for _ in range(2)]
    trace.free(trace.scratch(cub.scan(segments, size, gpu)))
    held.append(trace.scratch(8))
    parts = count // _ROWS_PER_THREAD + segments
    held.append(trace.scratch(parts * size))
    if by_atomics:
        held.append(trace.scratch(parts * size))
        if gradient.element_size < 4:
            held.append(trace.scratch(words * width * 4))
    else:
        held.append(trace.scratch(parts * width * max(4, gradient.element_size)))
    trace.free(*reversed(held))


def _are_few_words(count: int, words: int, width: int, gpu: GpuSpec) -> bool:
    """Return whether blocks add to the result by atomics, in float32 (`use_fused_kernel`).

    That is so since torch 2.11 if a few words are repeated often and nothing must be deterministic,
    but not for bags.
    """
    if gpu.torch_version < torch_releases.EMBEDDING_ATOMICS or gpu.deterministic:
        return False
    segments = min(count, words)
    threads = -(-width // _WARP) * _WARP
    blocks = -(-segments * threads // min(threads, _MAX_THREADS))
    parts = count // _ROWS_PER_THREAD + segments
    return blocks < _BLOCKS_PER_SM * gpu.sm_count and parts > 4 * blocks

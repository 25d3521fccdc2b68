"""Attention: aten/src/ATen/native/transformers/cuda/attention{,_backward}.cu.

Flash attention follows flash_attn/flash_api.cpp, memory-efficient attention
mem_eff_attention/kernel_{forward,backward}.h, cuDNN's aten/src/ATen/native/cudnn/MHA.cpp. Checked
against the allocations of torch 2.13 with CUDA.
"""

from __future__ import annotations

import math

import torch

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates

_FLOAT = 4
_HALVES = (torch.float16, torch.bfloat16)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(n: int, multiple: int) -> int:
    return _ceil_div(n, multiple) * multiple


def _contiguous(tensor: TensorSpec, trace: KernelTrace) -> int | None:
    """Copy (batch, heads, length, features) unless `transpose(1, 2)` of it is contiguous."""
    is_contiguous = tensor.permuted((0, 2, 1, 3)).is_contiguous()
    return None if is_contiguous else trace.scratch(tensor.nbytes)


# ------------------------------------------------------------------------------ flash attention


def _key_splits(rows: int, multiprocessors: int, blocks: int) -> int:
    """`num_splits_heuristic` of flash_api.cpp.

    Args:
        rows: thread blocks without splits: batch x heads x blocks of queries.
        multiprocessors: number of thread blocks that run at once.
        blocks: blocks of keys, the largest number of splits.
    """
    if rows >= 0.8 * multiprocessors:
        return 1
    most = min(128, multiprocessors, blocks)
    efficiencies = {}
    for splits in range(1, most + 1):
        # The others have as many blocks in a split as one split fewer has.
        if splits == 1 or _ceil_div(blocks, splits) != _ceil_div(blocks, splits - 1):
            waves = rows * splits / multiprocessors
            efficiencies[splits] = waves / math.ceil(waves)
    best = max(efficiencies.values(), default=0.0)
    return next((s for s, e in efficiencies.items() if e >= 0.85 * best), 1)


@allocates("aten::_scaled_dot_product_flash_attention")
def flash_attention(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`mha_fwd`: of few queries the keys are split, and the parts are summed in float."""
    query, key = call.tensor("query"), call.tensor("key")
    batch, heads, length, features = query.shape
    trace.output(0)
    trace.output(1)
    parts = []
    if call["dropout_p"] == 0 and query.numel > 0 and key.numel > 0:
        block = 256 if features <= 64 else 128 if features <= 128 else 64
        key_heads, rows = key.shape[1], length
        if length == 1 and heads > key_heads and not call["is_causal"] and features % 8 == 0:
            rows, groups = heads // key_heads, key_heads  # `seqlenq_ngroups_swapped`
        else:
            groups = heads
        splits = _key_splits(
            batch * groups * _ceil_div(rows, 64),
            gpu.sm_count * 2,
            _ceil_div(key.shape[2], block),
        )
        if splits > 1:
            rounded = _round_up(features, 32 if features <= 128 else 64)
            count = splits * batch * heads * length
            parts = [trace.scratch(count * _FLOAT), trace.scratch(count * rounded * _FLOAT)]
    if gpu.torch_version < torch_releases.FLASH_STATE_ON_GPU:
        trace.skip_output(4)
        trace.skip_output(5)
        trace.free(*parts)
        return
    # In the flattened outputs without the two numbers, the generator's state is 4 and an unused
    # tensor 5. With dropout the state is a new tensor.
    state = trace.scratch(2 * 8) if call["dropout_p"] > 0 else None
    for index in (4, 5) if state is None else (5, 4):
        trace.output(index)
    trace.free(state, *parts)


@allocates("aten::_scaled_dot_product_flash_attention_backward")
def flash_attention_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`mha_bwd`: sums the query's gradient in float, and those of grouped keys and values."""
    query, key = call.tensor("query"), call.tensor("key")
    value = call.tensor("value")
    batch, heads, length, features = query.shape
    held = [_contiguous(call.tensor("grad_out"), trace), _contiguous(call.tensor("out"), trace)]
    trace.outputs()
    rounded = _round_up(length, 128)
    held.append(trace.scratch(batch * heads * rounded * _FLOAT))
    copies = 1
    if gpu.deterministic:
        copies = _ceil_div(gpu.sm_count, batch * heads)
    padded = _round_up(features, 32 if features <= 128 else 64)
    held.append(trace.scratch(copies * batch * heads * rounded * padded * _FLOAT))
    if key.shape[1] != heads:
        held += [trace.scratch(t.nbytes // t.shape[1] * heads) for t in (key, value)]
    trace.free(*reversed(held))


# ------------------------------------------------------------------ memory-efficient attention


def _is_small_ampere(gpu: GpuSpec) -> bool:
    """Ampere and Ada GPUs with 99 KiB of shared memory for a block."""
    return (8, 0) < gpu.capability < (9, 0)


@allocates("aten::_scaled_dot_product_efficient_attention")
def efficient_attention(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_efficient_attention_forward`: wide heads are summed in global memory, in float.

    Outside of CUDA graphs the seed and the offset of dropout are on the host.
    """
    query, value = call.tensor("query"), call.tensor("value")
    trace.output(0)
    trace.output(1)
    trace.skip_output(2)
    trace.skip_output(3)
    batch, heads, length, features = query.shape
    is_wide = max(features, value.shape[3]) > 128
    if query.dtype in _HALVES and is_wide:
        trace.scratch(batch * length * heads * value.shape[3] * _FLOAT)


def _backward_blocks(
    dtype: torch.dtype, features: int, has_dropout: bool, gpu: GpuSpec
) -> tuple[int, int, bool]:
    """Describe the first kernel that fits into shared memory (kernels/cutlassB.h).

    Args:
        dtype: type of the query.
        features: width of the widest head.
        has_dropout: whether kernels without dropout cannot be used.
        gpu: the GPU, whose shared memory decides.

    Returns:
        Queries and keys of a block, and whether the gradients of key and value are summed in global
        memory because they do not fit into registers.
    """
    if features <= 64:
        return 64, 64, False
    if dtype not in _HALVES:
        # Up to sm_75 and on sm_86 and sm_89 the larger block needs too much shared memory.
        is_large = gpu.capability >= (8, 0) and not _is_small_ampere(gpu)
        return (128 if is_large else 64), 64, False
    if features > 128:
        return 128, 64, True
    if _is_small_ampere(gpu):
        if features <= 96 and not has_dropout:
            return 128, 64, False
        return 64, 64, True
    return (128, 128, False) if gpu.capability >= (8, 0) else (128, 64, False)


@allocates("aten::_scaled_dot_product_efficient_attention_backward")
def efficient_attention_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_efficient_attention_backward`."""
    query, key = call.tensor("query"), call.tensor("key")
    value = call.tensor("value")
    batch, heads, length, features = query.shape
    keys, value_features = key.shape[2], value.shape[3]
    grad = _contiguous(call.tensor("grad_out_"), trace)
    for index in range(4):
        trace.output(index)
    widest = max(features, value_features)
    block, key_block, sums_keys = _backward_blocks(query.dtype, widest, call["dropout_p"] > 0, gpu)

    row_bytes = batch * heads * length * _FLOAT
    is_half = query.dtype in _HALVES
    is_volta = (7, 0) <= gpu.capability < (7, 5)
    if is_half and not (is_volta and sums_keys):
        delta = trace.scratch(row_bytes)  # by the kernel itself
    else:  # (grad.float() * out.float()).sum(-1).transpose(-2, -1).contiguous()
        temporaries = []
        full = row_bytes * value_features
        if is_half:
            temporaries = [trace.scratch(full), trace.scratch(full)]
        temporaries.append(trace.scratch(full))
        total = trace.scratch(row_bytes)
        if heads == 1 or length == 1:
            delta = total
        else:
            delta = trace.scratch(row_bytes)
            temporaries.append(total)
        trace.free(*reversed(temporaries))

    splits = _ceil_div(keys, key_block)
    if batch * heads >= 256 and keys <= 2 * key_block:
        splits = 1
    if sums_keys:
        splits = min(splits, 200 // (batch * heads))
    if splits < 1 or gpu.capability < (7, 0) or gpu.deterministic:
        splits = 1
    # Per head: the query's gradient by tiles of floats, each with a lock of 16 bytes.
    tiles = _ceil_div(length, block) * _ceil_div(features, key_block)
    elements = tiles * (block * key_block + 4)
    if gpu.capability < (7, 0) and not is_half:
        elements = 0  # no splits, and no other type to sum in
    if sums_keys:
        padded = _round_up(features, block) + _round_up(value_features, block)
        elements += splits * key_block * padded
    workspace = trace.scratch(batch * heads * _round_up(elements, 4) * _FLOAT)
    trace.free(delta, workspace, grad)


# ----------------------------------------------------------------------------- cuDNN attention


_PLAN_BYTES = 256
"""Workspace of cuDNN's plan itself, without the tensors that its frontend puts in the workspace."""
_PLAN_BYTES_BEFORE_HOPPER = 128


@allocates("aten::_scaled_dot_product_cudnn_attention")
def cudnn_attention(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`run_cudnn_SDP_fprop`: seed and offset of dropout come first, on the GPU."""
    # Flattened, without the two numbers: output, logsumexp, two undefined, seed, offset.
    for index in (4, 5, 0, 1):
        trace.output(index)
    has_workspace = gpu.capability >= (9, 0) and call.tensor("query").shape[2] > 1
    trace.free(trace.scratch(_PLAN_BYTES if has_workspace else 0))


@allocates("aten::_scaled_dot_product_cudnn_attention_backward")
def cudnn_attention_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`run_cudnn_SDP_bprop`, with the workspace of cuDNN 9.

    The workspace holds the query's gradient in float, one float for each of its rows, and with
    grouped queries the gradients of key and value for each of the query's heads. Before Hopper,
    where PyTorch does not choose cuDNN by itself, it holds a second gradient of the query. Blackwell
    is assumed to be like Hopper.
    """
    query, key = call.tensor("query"), call.tensor("key")
    value = call.tensor("value")
    batch, heads, length, features = query.shape
    trace.outputs()
    workspace = batch * heads * length * (features + 1) * _FLOAT
    plan = _PLAN_BYTES
    if gpu.capability < (9, 0):
        workspace += batch * heads * _round_up(length, 8) * features * _FLOAT
        plan = _PLAN_BYTES_BEFORE_HOPPER
    for tensor in (key, value):
        if tensor.shape[1] < heads:
            workspace += tensor.nbytes // tensor.shape[1] * heads
    trace.free(trace.scratch(workspace + plan))


# ------------------------------------------------------------------------- softmax(QK^T)V (math)


@allocates("aten::_safe_softmax")
def safe_softmax(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_safe_softmax` of attention.cpp: fully masked rows become zeros."""
    scores = call.tensor("self")
    dtype = call["dtype"] or scores.dtype
    rows = scores.numel // max(scores.shape[call["dim"]], 1)
    converted = trace.scratch(scores.numel * dtype.itemsize if dtype != scores.dtype else 0)
    trace.output(0)
    trace.free(converted)
    masked, masked_rows = trace.scratch(scores.numel), trace.scratch(rows)
    zero = trace.scratch(dtype.itemsize)
    trace.free(zero, masked_rows, masked)

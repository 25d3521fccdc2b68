"""`scaled_dot_product_attention` on meta tensors, by the operators that CUDA takes.

The operator is a composite that asks the device. For a tensor of the meta device it would always
choose the mathematical formulation, which keeps the matrix of all scores; CUDA rarely does. What is
done with a choice is that of aten/src/ATen/native/transformers/attention.cpp (torch 2.6-2.13).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cuda_checks.attention import validate_attention
from bsfind.simulation.trace.cuda_paths.attention_backend import (
    HALVES,
    AttentionBackend,
    AttentionQuestion,
    choose_attention,
)
from bsfind.simulation.trace.torch_private import (
    is_reduced_math_attention_allowed,
)
from bsfind.workload.blame import stands_for_torch

aten = torch.ops.aten


def _additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`convert_boolean_attn_mask`: scores to add, 0 where a bool mask is true."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    allowed = aten.scalar_tensor.default(0.0, dtype=dtype, device=mask.device)
    forbidden = aten.scalar_tensor.default(-math.inf, dtype=dtype, device=mask.device)
    converted: Tensor = aten.where.self(mask, allowed, forbidden)
    return converted


def _efficient_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """`preprocess_mask`: rows that begin at multiples of 8 elements, broadcast without a copy."""
    aligned = mask.stride(-1) == 1 and all(stride % 8 == 0 for stride in mask.stride()[:-1])
    if not aligned:
        length = mask.shape[-1]
        mask = aten.pad.default(mask, [0, 8 - length % 8])  # a whole 8 more where none is needed
        mask = aten.slice.Tensor(mask, -1, 0, length)
    return mask.expand(*query.shape[:3], key.shape[2])


def _padded_to_8(tensor: Tensor) -> Tensor:
    """`pad_last_dim<8>`: flash attention takes heads of multiples of 8 features."""
    excess = tensor.shape[-1] % 8
    return tensor if excess == 0 else aten.pad.default(tensor, [0, 8 - excess])


def _math_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    dropout_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """`_scaled_dot_product_attention_math` as it is for CUDA: the mask is added in place.

    For meta tensors it is added out of place (`areAnyTensorSubclassLike`), which would cost a copy
    of the scores.
    """
    dtype = query.dtype
    if dtype in HALVES and not is_reduced_math_attention_allowed():
        query, key, value = (tensor.to(torch.float32) for tensor in (query, key, value))
    in_float = [value, key, query]  # local variables of C++, which live to the end
    factor = math.sqrt(abs(scale) if scale is not None else query.shape[-1] ** -0.5)
    query = query * (-factor if scale is not None and scale < 0 else factor)
    if is_causal:
        lengths = (query.shape[-2], key.shape[-2])
        allowed = torch.ones(lengths, dtype=torch.bool, device=query.device).tril()
        attn_mask = _additive_mask(allowed, query.dtype)
    if enable_gqa:
        key, value = (_repeated_heads(tensor, query.shape[-3]) for tensor in (key, value))
    scores = torch.matmul(query, key.transpose(-2, -1) * factor)
    if attn_mask is not None:
        scores.add_(attn_mask)
    weights = aten._safe_softmax.default(scores, -1)
    del scores
    if dropout_p > 0 and dropout_mask is not None:
        weights = weights.masked_fill(dropout_mask.logical_not(), 0.0)
        value = value * (1 / (1 - dropout_p))
    elif dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, True)
    # g++ evaluates arguments from the last to the first
    weights_out = weights.to(dtype)
    out = torch.matmul(weights, value).to(dtype)
    del query, key, value
    while in_float:
        in_float.pop()
    return out, weights_out


def _repeated_heads(tensor: Tensor, heads: int) -> Tensor:
    """`pre_process_group_query_attention_input`."""
    own = tensor.shape[-3]
    return tensor if own == heads else tensor.repeat_interleave(heads // own, -3)


@stands_for_torch
def _check_lengths(key: Tensor, value: Tensor) -> None:
    """Refuse what `_efficient_attention_forward` of native/transformers/cuda/attention.cu refuses."""
    if key.shape[2] != value.shape[2]:
        raise RuntimeError(
            "key and value must have the same sequence length, "
            f"but got {key.shape[2]} and {value.shape[2]}"
        )


def _efficient_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of `_scaled_dot_product_efficient_attention`.

    PyTorch's own meta kernel puts seed and offset of dropout on the GPU; they are on the host.
    """
    batch, heads, length, _ = query.shape
    out = query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
    rows = -(-length // 32) * 32 if compute_log_sumexp else 0
    logsumexp = query.new_empty((batch, heads, rows), dtype=torch.float32)
    seed, offset = (torch.zeros((), dtype=torch.long, device="cpu") for _ in range(2))
    return out, logsumexp, seed, offset


def _cudnn_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """The outputs of `_scaled_dot_product_cudnn_attention`.

    PyTorch's own meta kernel has a logsumexp also where none is asked for.
    """
    batch, heads, length, _ = query.shape
    shape = (batch, heads, length, value.shape[3])
    if tuple(query.shape) == shape:
        out = torch.empty_like(query)
    else:  # `alloc_with_matching_layout`
        order = sorted(range(4), key=query.stride().__getitem__, reverse=True)
        out = torch.empty_permuted(shape, order, dtype=query.dtype, device=query.device)
    logsumexp = None
    if compute_log_sumexp:
        logsumexp = query.new_empty((batch, heads, length, 1), dtype=torch.float32)
    seed, offset = (query.new_empty((), dtype=torch.long) for _ in range(2))
    return out, logsumexp, None, None, length, key.shape[2], seed, offset, None


def meta_kernels(gpu: GpuSpec) -> dict[str, Callable[..., Any]]:
    """Return kernels that make the outputs as CUDA's do."""
    return {
        "_scaled_dot_product_efficient_attention": _efficient_forward,
        "_scaled_dot_product_cudnn_attention": _cudnn_forward,
    }


def kernels(gpu: GpuSpec) -> dict[str, Callable[..., Any]]:
    """Return the kernels by the operators' names, each called with the operator's arguments."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        validate_attention(query, key, value, attn_mask)
        question = AttentionQuestion(
            query=query,
            key=key,
            value=value,
            mask=attn_mask,
            dropout=dropout_p,
            is_causal=is_causal,
            enable_gqa=enable_gqa,
        )
        backend = choose_attention(question, gpu)
        mask = _additive_mask(attn_mask, query.dtype)
        out: Tensor
        if backend == AttentionBackend.CUDNN:
            out = aten._scaled_dot_product_cudnn_attention.default(
                *(query, key, value, mask, question.needs_gradient),
                *(dropout_p, is_causal, False),
                scale=scale,
            )[0]
            return out
        if backend == AttentionBackend.FLASH:
            features = query.shape[-1]
            out = aten._scaled_dot_product_flash_attention.default(
                *(_padded_to_8(query), _padded_to_8(key), _padded_to_8(value)),
                *(dropout_p, is_causal, False),
                scale=features**-0.5 if scale is None else scale,
            )[0]
            if out.shape[-1] != features:
                out = aten.slice.Tensor(out, -1, 0, features)
            return out
        if backend == AttentionBackend.EFFICIENT:
            _check_lengths(key, value)
            if mask is not None:
                mask = _efficient_mask(mask, query, key)
            out = aten._scaled_dot_product_efficient_attention.default(
                *(query, key, value, mask, question.needs_gradient, dropout_p, is_causal),
                scale=scale,
            )[0]
            return out
        out = aten._scaled_dot_product_attention_math.default(
            *(query, key, value, mask, dropout_p, is_causal, None),
            scale=scale,
            enable_gqa=enable_gqa,
        )[0]
        return out

    return {
        "scaled_dot_product_attention": attention,
        "_scaled_dot_product_attention_math": _math_attention,
    }

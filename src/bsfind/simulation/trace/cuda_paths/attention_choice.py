"""`scaled_dot_product_attention` on meta tensors: the kernel that CUDA chooses, and its outputs.

The operator is a composite that asks the device. For a tensor of the meta device it would always
choose the mathematical formulation, which keeps the matrix of all scores; CUDA rarely does. The
constraints are those of aten/src/ATen/native/transformers/cuda/sdp_utils.cpp and sdp_utils_cpp.h,
without nested tensors; what is done with a choice is that of
aten/src/ATen/native/transformers/attention.cpp (torch 2.6-2.13). What the user has allowed is read
from `torch.backends.cuda` and `torch.nn.attention.sdpa_kernel` as PyTorch does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels.argument_checks.layers import validate_attention
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.torch_private import (
    is_cudnn_attention_enabled,
    is_efficient_attention_enabled,
    is_flash_attention_enabled,
    is_math_attention_enabled,
    is_reduced_math_attention_allowed,
    sdp_priorities,
)
from bsfind.workload.user_errors import stands_for_torch

HALVES = (torch.float16, torch.bfloat16)

_DEFAULT_ORDERS = ((1, 2, 0, 3, 4), (1, 2, 0, 3, 0))
"""`sdp_priority_order` of aten/src/ATen/Context.h before CUDA has been asked once; the last is 2.6's."""


class AttentionBackend(IntEnum):
    """`at::SDPBackend`, the part of it that CUDA has (aten/src/ATen/SDPBackend.h)."""

    MATH = 0
    FLASH = 1
    EFFICIENT = 2
    CUDNN = 3


@dataclass(frozen=True, kw_only=True)
class AttentionQuestion:
    """What the choice depends on.

    Attributes:
        query, key, value: tensors, usually (batch, heads, length, features).
        mask: additive or bool mask, if there is one.
        dropout: probability.
        is_causal: whether a causal mask is to be applied.
        enable_gqa: whether key and value may have fewer heads.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout: float = 0.0
    is_causal: bool = False
    enable_gqa: bool = False

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value."""
        return self.query, self.key, self.value

    @property
    def needs_gradient(self) -> bool:
        """Whether a backward pass may follow."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.all)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that all three have; None if they differ."""
        dtypes = {tensor.dtype for tensor in self.all}
        return dtypes.pop() if len(dtypes) == 1 else None


@stands_for_torch
def choose_attention(question: AttentionQuestion, gpu: GpuSpec) -> AttentionBackend:
    """Return the first backend in order of priority that can run (`select_sdp_backend`).

    Raises:
        RuntimeError: none can, as on the GPU.
    """
    fused: dict[int, tuple[Callable[[], bool], Callable[..., bool]]] = {
        AttentionBackend.CUDNN: (is_cudnn_attention_enabled, _can_use_cudnn),
        AttentionBackend.FLASH: (is_flash_attention_enabled, _can_use_flash),
        AttentionBackend.EFFICIENT: (is_efficient_attention_enabled, _can_use_efficient),
    }
    for backend in _priorities(gpu):
        if backend == AttentionBackend.MATH and is_math_attention_enabled():
            return AttentionBackend.MATH
        if backend in fused:
            is_enabled, can_be_used = fused[backend]
            if is_enabled() and _is_dense(question) and can_be_used(question, gpu):
                return AttentionBackend(backend)
    raise RuntimeError("No available kernel. Aborting execution.")


def _priorities(gpu: GpuSpec) -> tuple[int, ...]:
    order = tuple(sdp_priorities())
    if order in _DEFAULT_ORDERS and _prefers_cudnn(gpu):
        return (3, 1, 2, 0)
    return order


def _prefers_cudnn(gpu: GpuSpec) -> bool:
    """`check_prefer_cudnn_attention`: Hopper and data centre Blackwell since torch 2.11.

    Before, the wheels' cuDNN was older than the 9.15.1 that is asked for, and no environment variable
    changes that (asked of torch 2.6 and 2.9).
    """
    if gpu.torch_version < torch_releases.CUDNN_ATTENTION_FIRST:
        return False
    if os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1":
        return False
    # The exclusion of sm_101 and later of the CUDA 12 wheels does not hold for those of CUDA 13.
    return gpu.capability[0] in (9, 10)


def _can_use_cudnn(question: AttentionQuestion, gpu: GpuSpec) -> bool:
    query, key, value = question.all
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and not torch.is_deterministic_algorithms_warn_only_enabled():
        return False
    if question.dtype not in HALVES or not (8, 0) <= gpu.capability <= (12, 1):
        return False
    if not _has_cudnn_mask_shape(question):
        return False
    dropout = question.dropout
    is_too_fine = dropout * 16 != math.floor(dropout * 16)
    if is_too_fine and gpu.torch_version >= torch_releases.CUDNN_ATTENTION_DROPOUT:
        return False
    if not _has_unit_stride(question, ignore_singleton=True):
        return False
    if not _has_matching_heads(question, supports_gqa=True, value_as_key=False):
        return False
    if max(query.shape[:2]) > 65535:
        return False
    # Beyond 128 features, as cuDNN 9 has it: Hopper anything up to 256; of Blackwell the data centre
    # chips 192 of query and key with 128 of value.
    features, value_features = query.shape[3], value.shape[3]
    limit = 128
    if gpu.capability == (9, 0):
        limit = 256
    elif gpu.capability[0] == 10 and (features, value_features) == (192, 128):
        limit = 192
    if max(features, value_features) > limit or features % 8 or value_features % 8:
        return False
    return key.shape[2] != 1 and not (dropout != 0 and query.shape[2] == 1)


def _can_use_flash(question: AttentionQuestion, gpu: GpuSpec) -> bool:
    query, key, value = question.all
    if question.mask is not None or not (8, 0) <= gpu.capability <= (12, 1):
        return False
    features = query.shape[3]
    if not features == key.shape[3] == value.shape[3] or features > 256:
        return False
    # The backward pass needs more shared memory than these have.
    is_small = (8, 6) <= gpu.capability <= (8, 9) or (12, 0) <= gpu.capability <= (12, 1)
    is_too_wide = features > 192 and (question.dropout > 0 or features <= 224)
    if question.needs_gradient and is_small and is_too_wide:
        return False
    if question.is_causal and query.shape[2] != key.shape[2]:
        return False
    return (
        question.dtype in HALVES
        and _has_matching_heads(question, supports_gqa=True)
        and _has_unit_stride(question, ignore_singleton=True)
    )


def _can_use_efficient(question: AttentionQuestion, gpu: GpuSpec) -> bool:
    query, key, value = question.all
    if not (5, 0) <= gpu.capability <= (12, 1):
        return False
    dtypes = {torch.float16, torch.float32}
    if gpu.capability >= (8, 0):
        dtypes.add(torch.bfloat16)
    alignment = _gemm_alignment(query.dtype, gpu)
    if query.shape[3] != key.shape[3]:
        return False
    for features in (query.shape[3], value.shape[3]):
        if features == 0 or features % alignment:
            return False
    if gpu.capability >= (8, 0) and not _is_aligned(question, alignment):
        return False
    return (
        _has_unit_stride(question, ignore_singleton=False)
        and _has_matching_heads(question, supports_gqa=False)
        and question.dtype in dtypes
    )


def _is_dense(question: AttentionQuestion) -> bool:
    """`check_tensor_shapes` and `check_nonzero_sequence_lengths_dense`, which all fused kernels ask."""
    if any(tensor.dim() != 4 for tensor in question.all):
        return False
    return question.query.shape[-2] != 0 and question.key.shape[-2] != 0


def _has_cudnn_mask_shape(question: AttentionQuestion) -> bool:
    """`check_attn_mask_shape`."""
    mask = question.mask
    if mask is None:
        return True
    batch, heads, length = question.query.shape[:3]
    if mask.requires_grad or mask.dim() not in (2, 4):
        return False
    sizes = (batch, heads, length, question.key.shape[2])[-mask.dim() :]
    return all(size in (1, full) for size, full in zip(mask.shape, sizes, strict=True))


def _has_unit_stride(question: AttentionQuestion, *, ignore_singleton: bool) -> bool:
    """`check_last_dim_stride_equals_1_dense`."""
    strided = all(tensor.stride(-1) == 1 for tensor in question.all)
    if ignore_singleton:
        strided = strided or question.query.shape[-1] == 1
    mask = question.mask
    return strided and (mask is None or mask.stride(-1) == 1)


def _has_matching_heads(
    question: AttentionQuestion, *, supports_gqa: bool, value_as_key: bool = True
) -> bool:
    """`check_batch_size_and_num_heads_dense`."""
    batches = {tensor.shape[0] for tensor in question.all}
    heads, key_heads, value_heads = (tensor.shape[1] for tensor in question.all)
    if len(batches) != 1:
        return False
    if question.enable_gqa and supports_gqa:
        if value_as_key and key_heads != value_heads:
            return False
        return bool(key_heads and heads % key_heads == 0 and heads % value_heads == 0)
    return heads == key_heads == value_heads


def _gemm_alignment(dtype: torch.dtype, gpu: GpuSpec) -> int:
    """`minimum_gemm_alignment`, in elements."""
    is_half = dtype in HALVES
    alignment = 4 if gpu.capability >= (8, 0) else 1
    if gpu.capability >= (8, 0) or (gpu.capability >= (7, 0) and is_half):
        alignment = max(alignment, 8 if is_half else 4)  # 128 bits, for tensor cores
    return alignment


def _is_aligned(question: AttentionQuestion, alignment: int) -> bool:
    """`check_data_ptr_alignment_mem_efficient`; the allocator's own addresses are aligned."""
    return all(
        tensor.numel() == 0 or tensor.storage_offset() % alignment == 0 for tensor in question.all
    )


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
    _key: Tensor,
    value: Tensor,
    _attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    *_rest: Any,
    **_options: Any,
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
    _attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    *_rest: Any,
    **_options: Any,
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


META_KERNELS: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_efficient_attention": _efficient_forward,
    "_scaled_dot_product_cudnn_attention": _cudnn_forward,
}
"""Kernels that make the outputs as CUDA's do."""


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
    ) -> Any:
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
        options = (dropout_p, is_causal)
        if backend == AttentionBackend.CUDNN:
            return aten._scaled_dot_product_cudnn_attention.default(
                *(query, key, value, mask, question.needs_gradient, *options, False), scale=scale
            )[0]
        if backend == AttentionBackend.FLASH:
            features = query.shape[-1]
            out = aten._scaled_dot_product_flash_attention.default(
                *(_padded_to_8(query), _padded_to_8(key), _padded_to_8(value), *options, False),
                scale=features**-0.5 if scale is None else scale,
            )[0]
            is_padded = out.shape[-1] != features
            return aten.slice.Tensor(out, -1, 0, features) if is_padded else out
        if backend == AttentionBackend.EFFICIENT:
            _check_lengths(key, value)
            if mask is not None:
                mask = _efficient_mask(mask, query, key)
            return aten._scaled_dot_product_efficient_attention.default(
                *(query, key, value, mask, question.needs_gradient, *options), scale=scale
            )[0]
        return aten._scaled_dot_product_attention_math.default(
            *(query, key, value, mask, *options, None), scale=scale, enable_gqa=enable_gqa
        )[0]

    return {
        "scaled_dot_product_attention": attention,
        "_scaled_dot_product_attention_math": _math_attention,
    }

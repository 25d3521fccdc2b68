"""Kernels that only CUDA has, or that are slow on the CPU: for steps with values (see value_steps.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    scale: float | None = None,
) -> Tensor:
    return _attention(query, key, value, None, dropout, is_causal, scale)


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    _log_sums: bool,
    dropout: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    scale: float | None = None,
) -> Tensor:
    return _attention(query, key, value, mask, dropout, is_causal, scale)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Return the output alone: what else a fused kernel returns is for its backward pass."""
    out: Tensor = aten._scaled_dot_product_attention_math.default(
        *(query, key, value, mask, dropout, is_causal),
        scale=scale,
        enable_gqa=query.shape[-3] != key.shape[-3],
    )[0]
    return out


def _batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
) -> Tensor:
    out: Tensor = aten.native_batch_norm.default(
        x, weight, bias, mean, variance, training, momentum, epsilon
    )[0]
    return out


_MOST_DRAWN = 1 << 20
"""Elements of a mask of dropout that are drawn; a larger one repeats them: the CPU draws on one thread."""


def _dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if x.numel() <= _MOST_DRAWN or not train or not 0 < p < 1:
        out: tuple[Tensor, Tensor] = aten.native_dropout.default(x, p, train)
        return out
    drawn = torch.empty(_MOST_DRAWN, dtype=torch.bool).bernoulli_(1 - p)
    mask = drawn.repeat(-(-x.numel() // _MOST_DRAWN))[: x.numel()].clone().view(x.shape)
    return (x * mask).mul_(1 / (1 - p)), mask


CPU_KERNELS: dict[str, Callable[..., Any]] = {
    "aten::cudnn_batch_norm": _batch_norm,
    "aten::native_dropout": _dropout,
    "aten::_scaled_dot_product_flash_attention": _flash,
    "aten::_scaled_dot_product_efficient_attention": _efficient,
    "aten::_scaled_dot_product_cudnn_attention": _efficient,
}
"""By the operator's name."""

"""Attention: `validate_sdpa_input` of aten/src/ATen/native/transformers/attention.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import Call
from bsfind.simulation.kernels.cuda_checks.check import checks, cpp_name
from bsfind.workload.blame import stands_for_torch


@stands_for_torch
def validate_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Refuse tensors that `scaled_dot_product_attention` refuses before it chooses a backend.

    Raises:
        RuntimeError: dtypes or devices differ.
    """
    ours = query.dtype
    if not ours == key.dtype == value.dtype:
        raise RuntimeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{cpp_name(ours)} key.dtype: {cpp_name(key.dtype)} and value.dtype: "
            f"{cpp_name(value.dtype)} instead."
        )
    if not query.is_meta == key.is_meta == value.is_meta:
        where = ["cuda:0" if tensor.is_meta else "cpu" for tensor in (query, key, value)]
        raise RuntimeError(
            "Expected query, key, and value to have the same device type, but got query.device: "
            f"{where[0]} key.device: {where[1]} and value.device: {where[2]} instead."
        )
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, ours):
        raise RuntimeError(
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got "
            f"attn_mask.dtype: {cpp_name(mask.dtype)} and  query.dtype: {cpp_name(ours)} instead."
        )


@checks("aten::_scaled_dot_product_efficient_attention")
def _efficient(call: Call) -> None:
    """`_efficient_attention_forward` of native/transformers/cuda/attention.cu."""
    bias = call.maybe_tensor("attn_bias")
    if bias is not None and bias.dtype != call.tensor("query").dtype:
        raise RuntimeError("invalid dtype for bias - should match query's dtype")

"""Stands for bitsandbytes: its operators have shapes here, and no kernels."""

from __future__ import annotations

from typing import Any

import torch

_LIBRARY = torch.library.Library("bitsandbytes", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "gemm_4bit(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, "
    "Tensor? bias=None, Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None)"
    " -> Tensor"
)
_LIBRARY.define("optimizer_update_32bit(Tensor(a!) p, Tensor g, Tensor(b!) state1) -> ()")


@torch.library.register_fake("bitsandbytes::gemm_4bit")
def _(x: torch.Tensor, weight: torch.Tensor, shape: list[int], *_: Any, **__: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], shape[0]))


@torch.library.register_fake("bitsandbytes::optimizer_update_32bit")
def _(p: torch.Tensor, g: torch.Tensor, state1: torch.Tensor) -> None:
    pass

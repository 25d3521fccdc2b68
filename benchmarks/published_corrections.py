"""What the software of published measurements did otherwise than that of today.

`data/published_points.csv` says which row needs what.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bsfind.import_path import resolve_function

__all__ = ["adafactor", "adam_loop", "adamw_loop", "built", "old_softmax"]


def built(name: str, *, old_softmax: bool = False, ddp: bool = False, **settings: Any) -> nn.Module:
    """Build a model, and change what the source's software did otherwise.

    Args:
        name: import path of the function that builds it.
        old_softmax: softmax keeps its input too (see `OldSoftmax`).
        ddp: add the buckets of DistributedDataParallel, a copy of all gradients.
        settings: arguments of the function.
    """
    if old_softmax:
        _use_old_softmax()
    model: nn.Module = resolve_function(name)(**settings)
    if ddp:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.register_buffer("ddp_buckets", torch.zeros(trained), persistent=False)
    return model


def adamw_loop(params: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW that updates one parameter after the other, as before torch 1.13."""
    return torch.optim.AdamW(params, foreach=False)


def adam_loop(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Adam that updates one parameter after the other, as before torch 1.13."""
    return torch.optim.Adam(params, foreach=False)


def adafactor(params: Iterable[Any]) -> torch.optim.Optimizer:
    """Adafactor of transformers, as its Trainer makes it."""
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(
        params, lr=5e-5, scale_parameter=False, relative_step=False
    )
    return made


class OldSoftmax(torch.autograd.Function):
    """Softmax over the last dimension, whose backward pass keeps the input besides the output.

    `_softmax_backward_data` took the input, for its dtype alone, until torch 1.10
    (tools/autograd/derivatives.yaml).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the softmax."""
        y = torch.softmax(x, -1)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient of the input."""
        x, y = ctx.saved_tensors
        return torch._softmax_backward_data(grads[0], y, -1, x.dtype)


def old_softmax(x: Tensor, dim: int | None = None, **_: Any) -> Tensor:
    """`torch.nn.functional.softmax` of torch 1.10 over the last dimension."""
    if dim not in (-1, x.ndim - 1):
        raise NotImplementedError(f"softmax over dimension {dim}")
    if torch.is_autocast_enabled("cuda"):
        x = x.float()
    y: Tensor = OldSoftmax.apply(x)
    return y


def _use_old_softmax() -> None:
    nn.functional.softmax = old_softmax

"""Operators whose result has a size that depends on values: how large it can be, and what it looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.value_rules import Range


class SizedResult(NamedTuple):
    """The result of an operator.

    Attributes:
        possible: returns the largest size, given the first argument and its bounds; None: any.
        size_of: returns the size of a result, given its first tensor.
        example: returns a result of a size, given the operator and its arguments.
    """

    possible: Callable[[Tensor, Range], int | None]
    size_of: Callable[[Tensor], int]
    example: Callable[[Any, Args, Kwargs, int], Any]


def _rows(first: Tensor) -> int:
    return first.shape[0] if first.dim() else 1


def _count(x: Tensor, _: Range) -> int:
    return x.numel()


def _distinct(x: Tensor, known: Range) -> int:
    if x.is_floating_point() or x.is_complex():
        return x.numel()
    return min(x.numel(), int(known.high - known.low) + 1)


def _nonzero(op: Any, args: Args, _: Kwargs, size: int) -> Any:
    dims = args[0].dim()
    return (
        op(torch.ones((size, *[1] * (dims - 1)), dtype=torch.bool))
        if dims
        else op(torch.ones((), dtype=torch.bool))[:size]
    )


def _groups(op: Any, args: Args, kwargs: Kwargs, size: int) -> Any:
    """Run `unique` on as many groups of equal elements."""
    x = args[0]
    groups = torch.arange(x.numel()).mul_(size).div_(max(1, x.numel()), rounding_mode="floor")
    return _like(x, op(groups.reshape(x.shape), *args[1:], **kwargs))


def _groups_of_slices(op: Any, args: Args, kwargs: Kwargs, size: int) -> Any:
    x, dim = args[0], args[1] if len(args) > 1 else kwargs["dim"]
    count = x.shape[dim]
    groups = torch.arange(count).mul_(size).div_(max(1, count), rounding_mode="floor")
    shape = [1] * x.dim()
    shape[dim] = count
    return _like(x, op(groups.reshape(shape).expand(x.shape), *args[1:], **kwargs))


def _like(x: Tensor, result: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result[0].to(x.dtype), *result[1:]


def _indices(_op: Any, _args: Args, _kwargs: Kwargs, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.int64)


def _bins(op: Any, args: Args, kwargs: Kwargs, size: int) -> Any:
    given = {**dict(zip(("self", "weights", "minlength"), args, strict=False)), **kwargs}
    weights = given.get("weights")
    one = None if weights is None else torch.ones(1, dtype=weights.dtype)
    return op(torch.tensor([max(size, 1) - 1]), one, given.get("minlength", 0))


_unique = SizedResult(_distinct, _rows, _groups)
_unique_slices = SizedResult(lambda x, _: max(x.shape, default=1), _rows, _groups_of_slices)

SIZED_RESULTS: dict[str, SizedResult] = {
    "aten::nonzero": SizedResult(_count, _rows, _nonzero),
    **dict.fromkeys(("aten::_unique", "aten::_unique2", "aten::unique_consecutive"), _unique),
    **dict.fromkeys(("aten::unique_dim", "aten::unique_dim_consecutive"), _unique_slices),
    "aten::repeat_interleave": SizedResult(lambda *_: None, _rows, _indices),
    "torchvision::nms": SizedResult(lambda boxes, _: boxes.shape[0], _rows, _indices),
    "aten::bincount": SizedResult(lambda _, known: int(known.high) + 1, _rows, _bins),
}
"""By the operator's name."""

"""Bounds of the values of tensors whose values are not known.

Activations have no values here, but a softmax lies between 0 and 1, an index below the size that it
counts, and what a model in good health computes is finite. Code asks for that much: `(p <= 1).all()`,
`isnan(x).any()`, `ids.max() < n`. Bounds go with the storage, as views share it, and hold for all of
its elements. Of a bool that may be either, they also say which one training in good health has: `all`
of what is unknown is true, `any` of it is false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from bsfind.simulation.trace.torch_private import address_of


class Range(NamedTuple):
    """Bounds of values, both included.

    Attributes:
        low: the smallest value that is possible; a bool counts as 0 or 1.
        high: the largest.
        likely: which of them a training in good health has; None: nothing speaks for one.
    """

    low: float
    high: float
    likely: float | None = None

    @property
    def is_decided(self) -> bool:
        """Whether there is one value only."""
        return self.low == self.high

    @property
    def guess(self) -> float:
        """The value that is taken where one is read: the likely one, or the one nearest to zero."""
        return min(max(0.0, self.low), self.high) if self.likely is None else self.likely


FALSE, TRUE, EITHER = Range(0, 0), Range(1, 1), Range(0, 1)
"""Bounds of a bool."""


def range_of_dtype(dtype: torch.dtype) -> Range:
    """Return the bounds of any finite value of a dtype."""
    if dtype == torch.bool:
        return EITHER
    if dtype.is_complex:
        return Range(-math.inf, math.inf)
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return Range(limits.min, limits.max)


class Ranges:
    """The bounds that are narrower than those of the dtype, by storage.

    Args:
        values_of: returns the values of a tensor, None where they are not known.
        rules: of operators, by name.
    """

    def __init__(
        self,
        values_of: Callable[[torch.Tensor], torch.Tensor | None],
        rules: Mapping[str, Rule],
    ) -> None:
        self._values_of = values_of
        self._rules = rules
        self._ranges: dict[int, Range] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def forget_storage(self, key: int) -> None:
        """Drop what is known of a storage."""
        self._ranges.pop(key, None)

    def of(self, tensor: torch.Tensor) -> Range:
        """Return the bounds of a tensor's values."""
        if tensor.layout is torch.strided:
            values = self._values_of(tensor) if tensor.is_meta else tensor
            if values is None:
                known = self._ranges.get(address_of(tensor.untyped_storage()))
                if known is not None:
                    return known
            elif values.numel() and not values.is_complex():
                return _range_of(values)
        return range_of_dtype(tensor.dtype)

    def set(self, tensor: torch.Tensor, known: Range) -> None:
        """Keep the bounds of a tensor that is all of its storage."""
        self._ranges[address_of(tensor.untyped_storage())] = known

    def keep_range_of(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the bounds of values that are about to be forgotten."""
        if values.numel() and not values.is_complex():
            self.set(tensor, _range_of(values))

    def has_rule(self, name: str, *, is_in_place: bool) -> bool:
        """Tell whether anything follows for the results of an operator."""
        return _rule_name(name, is_in_place=is_in_place) in self._rules

    def follow(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: Sequence[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> None:
        """Keep what follows for the results of an operator, given the bounds of its arguments.

        Args:
            name: of the operator's schema.
            args: as it was called.
            kwargs: as it was called.
            outputs: its new tensors without known values, flattened; None for the others.
            mutated: tensors without known values that it wrote to.
        """
        rule = self._rules.get(_rule_name(name, is_in_place=bool(mutated)))
        if rule is None:
            return
        answer = rule(self, args, kwargs)
        several = answer if isinstance(answer, list) else [answer]
        for tensor, known in zip((*mutated, *outputs), several, strict=False):
            if tensor is None or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            before = self._ranges.get(address_of(storage))
            if known is None:
                self._ranges.pop(address_of(storage), None)
            elif tensor.numel() * tensor.element_size() >= storage.nbytes():
                self._ranges[address_of(storage)] = known
            elif before is not None:
                self._ranges[address_of(storage)] = union(before, known)


def _rule_name(name: str, *, is_in_place: bool) -> str:
    bare = name.removeprefix("aten::")
    return bare.removesuffix("_") if is_in_place else bare


def _range_of(values: torch.Tensor) -> Range:
    stored = values.untyped_storage()
    if values.numel() * values.element_size() > stored.nbytes():  # expanded
        values = torch.empty(0, dtype=values.dtype).set_(stored)
    low, high = values.aminmax() if values.dtype != torch.bool else (values.all(), values.any())
    return Range(low.item(), high.item())


def union(*ranges: Range) -> Range:
    """Return the bounds of what lies in any of the given ones."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


Answer = Range | None | list[Range | None]
"""Bounds of an operator's result, or of each of its results; None: nothing follows."""

Rule = Callable[[Ranges, Sequence[Any], dict[str, Any]], Answer]
"""Says what follows for the results of an operator from its arguments, as it was called."""

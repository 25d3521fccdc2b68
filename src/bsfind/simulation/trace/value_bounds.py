"""Bounds of the values of tensors that are not known, by storage (see value_rules.py for what follows)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.torch_private import address_of
from bsfind.simulation.trace.value_rules import (
    RULES,
    Answer,
    Range,
    Rule,
    range_of_dtype,
    range_of_number,
    range_of_values,
    union,
)

KnownBounds = dict[tuple[Range | None, ...], list[Range | None] | None]
"""Of a call: by the bounds of the tensors among its arguments, those of its results; None where one of
these has a single value."""


class Ranges:
    """The bounds that are narrower than those of the dtype, by storage.

    Args:
        values_of: returns the values of a tensor, None where they are not known.
    """

    def __init__(self, values_of: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        self._values_of = values_of
        self._ranges: dict[int, Range] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def forget_storage(self, key: int) -> None:
        """Drop what is known of a storage."""
        self._ranges.pop(key, None)

    def of(self, value: Any) -> Range:
        """Return the bounds of a tensor's values, or of another argument of an operator."""
        if not isinstance(value, torch.Tensor):
            return range_of_number(value)
        if value.layout is torch.strided:
            values = self._values_of(value) if value.is_meta else value
            if values is None:
                known = self._ranges.get(address_of(value.untyped_storage()))
                if known is not None:
                    return known
            elif values.numel() and not values.is_complex():
                return range_of_values(values)
        return range_of_dtype(value.dtype)

    def set(self, tensor: torch.Tensor, known: Range) -> None:
        """Keep the bounds of a tensor that is all of its storage."""
        self._ranges[address_of(tensor.untyped_storage())] = known

    def follow(
        self,
        name: str,
        args: Args,
        kwargs: Kwargs,
        outputs: Sequence[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> None:
        """Keep what follows for the results of an operator, given the bounds of its arguments.

        Args:
            name: name of the operator's schema.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            outputs: its new tensors without known values, flattened; None for the others.
            mutated: tensors without known values that it wrote to.
        """
        rule = rule_of(name, is_in_place=bool(mutated))
        if rule is not None:
            self.keep(several(rule(self.of, args, kwargs)), (*mutated, *outputs))

    def known_of(self, storages: Sequence[int]) -> tuple[Range | None, ...]:
        """Return the bounds of storages; None for those of the dtype."""
        known = self._ranges
        if not known:
            return (None,) * len(storages)
        return tuple([known.get(storage) for storage in storages])

    def keep(self, bounds: Sequence[Range | None], tensors: Sequence[torch.Tensor | None]) -> None:
        """Keep the bounds of tensors that an operator made or wrote to; None: nothing is known."""
        for tensor, known in zip(tensors, bounds, strict=False):
            if tensor is None or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            key = address_of(storage)
            before = self._ranges.get(key)
            if known is None:
                self._ranges.pop(key, None)
            elif tensor.numel() * tensor.element_size() >= storage.nbytes():
                self._ranges[key] = known
            elif before is not None:
                self._ranges[key] = union(before, known)


def several(answer: Answer) -> list[Range | None]:
    """Return the bounds of each result of an operator."""
    return answer if isinstance(answer, list) else [answer]


@functools.cache
def rule_of(name: str, *, is_in_place: bool) -> Rule | None:
    """Return the rule for the results of an operator, given the name of its schema."""
    bare = name.removeprefix("aten::")
    return RULES.get(bare.removesuffix("_") if is_in_place else bare)

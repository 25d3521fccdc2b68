"""Values of small tensors, and bounds of unknown ones, for code that branches on them.

A tensor of the simulated GPU has no values. Masks, lengths, indices and tables of constants are
small, though, and programs read them: `mask.all()`, `lengths.max().item()`, `x[keep]`. Each storage
whose values are known has a copy with them in the host's memory; views share the copy as they share
the storage, and what an operator does to the one is done to the other. As soon as something unknown
is written to a storage, its copy is dropped; what is known from then on are bounds
(see value_rules.py). Bounds too belong to the storage, and hold for all of its elements.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bsfind.simulation.trace.calls import Args, Kwargs, mapped
from bsfind.simulation.trace.torch_private import address_of
from bsfind.simulation.trace.value_rules import (
    RULES,
    Range,
    Rule,
    range_of_dtype,
    range_of_number,
    range_of_values,
    union,
)

_MAX_EXACT = 1 << 22
"""Elements of an integer or bool tensor whose values are kept."""

_MAX_FLOAT = 1 << 12
"""The same for floating point: scales, thresholds, tables; activations depend on weights anyway."""

_CPU = torch.device("cpu")

_FACTORIES_LIKE = frozenset(
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
        *("empty_like", "new_empty", "new_empty_strided", "randint_like"),
    )
)
"""Of the inputs of these, only shape and dtype matter."""

_RANDOM = frozenset(
    f"aten::{name}"
    for name in (
        *("rand", "randn", "rand_like", "randn_like", "normal", "normal_", "uniform", "uniform_"),
        *("bernoulli", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "native_dropout"),
    )
)
"""Draws of these are as unknown as activations; integers are drawn from a range that was given."""

_KEEPS_VALUES = frozenset(("aten::_amp_foreach_non_finite_check_and_unscale_",))
"""Nothing that is known changes here: finite gradients leave `found_inf` as it was."""


class _UnknownValueError(Exception):
    """An operator reads values that are not known."""


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
        if rule is None:
            return
        answer = rule(self.of, args, kwargs)
        several = answer if isinstance(answer, list) else [answer]
        for tensor, known in zip((*mutated, *outputs), several, strict=False):
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


@functools.cache
def rule_of(name: str, *, is_in_place: bool) -> Rule | None:
    """Return the rule for the results of an operator, given the name of its schema."""
    bare = name.removeprefix("aten::")
    return RULES.get(bare.removesuffix("_") if is_in_place else bare)


class Values:
    """The values that are known of tensors on the simulated GPU.

    Attributes:
        ranges: bounds of values that are not known.
    """

    def __init__(self) -> None:
        self._copies: dict[int, torch.Tensor] = {}
        self.ranges = Ranges(self.of)

    def forget_storage(self, key: int) -> None:
        """Drop what is known of a storage."""
        self._copies.pop(key, None)
        self.ranges.forget_storage(key)

    def take(self, storage: Any) -> torch.Tensor | None:
        """Remove a storage's copy, if it has one, and return it."""
        self.ranges.forget_storage(address_of(storage))
        return self._copies.pop(address_of(storage), None)

    def give(self, storage: Any, copy: torch.Tensor | None) -> None:
        """Put back what `take` returned."""
        if copy is not None:
            self._copies[address_of(storage)] = copy

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the values of a tensor on the simulated GPU; None where they are not known."""
        if not self._copies or tensor.layout is not torch.strided:
            return None
        copy = self._copies.get(address_of(tensor.untyped_storage()))
        if copy is None:
            return None
        return torch.empty(0, dtype=tensor.dtype).set_(
            copy.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def set(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the values of a tensor, if they are few enough."""
        storage = tensor.untyped_storage()
        if not self._is_kept(tensor) or storage.nbytes() > 8 * _MAX_EXACT:
            self.forget_storage(address_of(storage))
            return
        self.ranges.forget_storage(address_of(storage))
        self._copies[address_of(storage)] = torch.empty(storage.nbytes(), dtype=torch.uint8)
        own = self.of(tensor)
        assert own is not None
        own.copy_(values)

    @staticmethod
    def _is_kept(tensor: torch.Tensor) -> bool:
        count = tensor.numel()
        if count > _MAX_FLOAT:
            floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
            return not floating and count <= _MAX_EXACT
        return True

    def _has_copy(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.layout is torch.strided and address_of(tensor.untyped_storage()) in self._copies
        )

    def follow(
        self,
        op: Any,
        name: str,
        args: Args,
        kwargs: Kwargs,
        outputs: list[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> None:
        """Update what is known of values by what an operator did.

        Args:
            op: the operator.
            name: name of its schema.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            outputs: its new tensors on the simulated GPU, flattened; None for the others.
            mutated: tensors that it wrote to.
        """
        if name in _KEEPS_VALUES:
            return
        touched = [tensor for tensor in mutated if self._has_copy(tensor)] if mutated else []
        if touched or any(t is not None and self._is_kept(t) for t in outputs):
            self._repeat_on_copies(op, name, args, kwargs, outputs, touched)
        if rule_of(name, is_in_place=bool(mutated)) is None:
            if self.ranges:
                for tensor in mutated:
                    self.ranges.forget_storage(address_of(tensor.untyped_storage()))
            return
        unknown = [None if t is None or self._has_copy(t) else t for t in outputs]
        written = [tensor for tensor in mutated if not self._has_copy(tensor)]
        self.follow_ranges(name, args, kwargs, unknown, written)

    def follow_ranges(
        self,
        name: str,
        args: Args,
        kwargs: Kwargs,
        outputs: Sequence[torch.Tensor | None],
        mutated: Sequence[torch.Tensor] = (),
    ) -> None:
        """Update the bounds of values that are not known by what an operator did (see `follow`)."""
        if not mutated and not any(tensor is not None for tensor in outputs):
            return
        self.ranges.follow(name, args, kwargs, outputs, mutated)
        for tensor in outputs:
            if tensor is None or tensor.is_floating_point() or not self._is_kept(tensor):
                continue
            known = self.ranges.of(tensor)
            if known.is_decided:
                self.set(tensor, torch.full((), int(known.low), dtype=tensor.dtype))

    def _repeat_on_copies(
        self,
        op: Any,
        name: str,
        args: Args,
        kwargs: Kwargs,
        outputs: list[torch.Tensor | None],
        touched: Sequence[torch.Tensor],
    ) -> None:
        """Run an operator on the copies too; drop those of `touched` tensors where it cannot be."""
        try:
            if name in _RANDOM:
                raise _UnknownValueError
            result = self._run(op, args, kwargs, ignores_values=name in _FACTORIES_LIKE)
        except Exception:  # the CPU may have no such kernel: the values are unknown from here on
            for tensor in touched:
                copy = self._copies.pop(address_of(tensor.untyped_storage()), None)
                values = None if copy is None else copy.view(tensor.dtype)
                if values is not None and values.numel() and not values.is_complex():
                    self.ranges.set(tensor, range_of_values(values))
            return
        flat = result if isinstance(result, (list, tuple)) else (result,)
        for output, value in zip(outputs, flat, strict=False):
            if output is None or not isinstance(value, torch.Tensor):
                continue
            if self._is_kept(output) and value.shape == output.shape:
                self.set(output, value)

    def _run(self, op: Any, args: Args, kwargs: Kwargs, *, ignores_values: bool = False) -> Any:
        """Run an operator on the values of its arguments.

        Raises:
            _UnknownValueError: some are not known.
        """

        def on_host(value: Any) -> Any:
            if isinstance(value, torch.device):
                return _CPU
            if not isinstance(value, torch.Tensor) or not value.is_meta:
                return value
            values = self.of(value)
            if values is None:
                if not ignores_values:
                    raise _UnknownValueError
                return torch.zeros((), dtype=value.dtype).expand(value.shape)
            return values

        return op(*mapped(args, on_host), **mapped(kwargs, on_host))

    def on_host(self, op: Any, args: Args, kwargs: Kwargs) -> Any:
        """Return what an operator answers for the values; None if some are not known."""
        try:
            return self._run(op, args, kwargs)
        except _UnknownValueError:
            return None

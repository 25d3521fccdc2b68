"""Real values of small tensors, kept beside the simulated ones, for code that branches on them.

A tensor of the simulated GPU has no values. Masks, lengths, indices and tables of constants are
small, though, and programs read them: `mask.all()`, `lengths.max().item()`, `x[keep]`. Each storage
whose values are known has a twin in the host's memory; views share the twin as they share the
storage, and what an operator does to the one is done to the other. As soon as something unknown
flows in, the twin is dropped, and what is known from then on are bounds (see value_ranges.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bsfind.simulation.trace.torch_private import address_of
from bsfind.simulation.trace.value_ranges import Ranges
from bsfind.simulation.trace.value_rules import RULES

_MAX_EXACT = 1 << 22
"""Elements of an integer or bool tensor whose values are kept."""

_MAX_FLOAT = 1 << 12
"""The same for floating point: scales, thresholds, tables; activations depend on weights anyway."""

_CPU = torch.device("cpu")

# What these return depends on shapes alone, or is what a model in good health has.
_FACTORIES_LIKE = frozenset(
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
        *("empty_like", "new_empty", "new_empty_strided", "randint_like"),
    )
)
_RANDOM = frozenset(
    f"aten::{name}"
    for name in (
        *("rand", "randn", "rand_like", "randn_like", "normal", "normal_", "uniform", "uniform_"),
        *("bernoulli", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "native_dropout"),
    )
)
"""Draws of these are as unknown as activations; integers are drawn from a range that was given."""

_LEAVES_HEALTHY = frozenset(("aten::_amp_foreach_non_finite_check_and_unscale_",))
"""Nothing that is known changes here: gradients in good health leave `found_inf` as it was."""


class Values:
    """The twins of a trace.

    Attributes:
        ranges: bounds of values that are not known.
    """

    def __init__(self) -> None:
        self._twins: dict[int, torch.Tensor] = {}
        self.ranges = Ranges(self.of, RULES)

    def forget_storage(self, key: int) -> None:
        """Drop a storage's twin, if it has one."""
        self._twins.pop(key, None)
        self.ranges.forget_storage(key)

    def _lose(self, tensor: torch.Tensor) -> None:
        """Drop the twin of a tensor: something unknown was written to it."""
        key = address_of(tensor.untyped_storage())
        twin = self._twins.pop(key, None)
        if twin is not None:
            self.ranges.keep_range_of(tensor, twin.view(tensor.dtype))

    def take(self, storage: Any) -> torch.Tensor | None:
        """Remove a storage's twin, if it has one, and return it."""
        self.ranges.forget_storage(address_of(storage))
        return self._twins.pop(address_of(storage), None)

    def give(self, storage: Any, twin: torch.Tensor | None) -> None:
        """Put back what `take` returned."""
        if twin is not None:
            self._twins[address_of(storage)] = twin

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the values of a tensor on the simulated GPU; None where they are not known."""
        if not self._twins or tensor.layout is not torch.strided:
            return None
        twin = self._twins.get(address_of(tensor.untyped_storage()))
        if twin is None:
            return None
        return torch.empty(0, dtype=tensor.dtype).set_(
            twin.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def set(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the values of a tensor, if they are few enough."""
        storage = tensor.untyped_storage()
        if not self._is_kept(tensor) or storage.nbytes() > 8 * _MAX_EXACT:
            self.forget_storage(address_of(storage))
            return
        self.ranges.forget_storage(address_of(storage))
        self._twins[address_of(storage)] = torch.empty(storage.nbytes(), dtype=torch.uint8)
        own = self.of(tensor)
        assert own is not None
        own.copy_(values)

    @staticmethod
    def _is_kept(tensor: torch.Tensor) -> bool:
        floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        return tensor.numel() <= (_MAX_FLOAT if floating else _MAX_EXACT)

    def follow(
        self,
        op: Any,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: list[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> None:
        """Take note of what an operator did to the values that are known.

        Args:
            op: the operator.
            name: its schema's name.
            args: as it was called.
            kwargs: as it was called.
            outputs: its new tensors on the simulated GPU, flattened; None for the others.
            mutated: tensors that it wrote to.
        """
        if name in _LEAVES_HEALTHY:
            return
        self._follow_twins(op, name, args, kwargs, outputs, mutated)
        if not self.ranges.has_rule(name, is_in_place=bool(mutated)):
            if self.ranges:
                for tensor in mutated:
                    self.ranges.forget_storage(address_of(tensor.untyped_storage()))
            return
        unknown = [None if t is None or self._has_twin(t) else t for t in outputs]
        written = [tensor for tensor in mutated if not self._has_twin(tensor)]
        self.follow_ranges(name, args, kwargs, unknown, written)

    def follow_ranges(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: Sequence[torch.Tensor | None],
        mutated: Sequence[torch.Tensor] = (),
    ) -> None:
        """Take note of what an operator did to the bounds of values that are not known."""
        if not mutated and not any(tensor is not None for tensor in outputs):
            return
        self.ranges.follow(name, args, kwargs, outputs, mutated)
        for tensor in outputs:
            if tensor is None or tensor.is_floating_point() or not self._is_kept(tensor):
                continue
            known = self.ranges.of(tensor)
            if known.is_decided:
                self.set(tensor, torch.full((), int(known.low), dtype=tensor.dtype))

    def _has_twin(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.layout is torch.strided and address_of(tensor.untyped_storage()) in self._twins
        )

    def _follow_twins(
        self,
        op: Any,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: list[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> None:
        """Do with the twins what an operator just did with their tensors (see `follow`)."""
        touched = [t for t in mutated if address_of(t.untyped_storage()) in self._twins]
        fresh = [t for t in outputs if t is not None and self._is_kept(t)]
        if not touched and not fresh:
            return
        # Only shape and dtype of the inputs of these matter.
        stand_in = name in _FACTORIES_LIKE
        known = name not in _RANDOM

        def on_host(value: Any) -> Any:
            nonlocal known
            if isinstance(value, torch.Tensor):
                if not value.is_meta:
                    return value
                twin = self.of(value)
                if twin is None:
                    if stand_in:
                        return torch.zeros((), dtype=value.dtype).expand(value.shape)
                    known = False
                    return value
                return twin
            if isinstance(value, torch.device):
                return _CPU
            if isinstance(value, (list, tuple)):
                return type(value)(on_host(item) for item in value)
            return value

        host_args = []
        for argument in args:
            if not known:
                break
            host_args.append(on_host(argument))
        host_kwargs = {key: on_host(value) for key, value in kwargs.items()} if known else {}
        if known:
            try:
                result = op(*host_args, **host_kwargs)
            except Exception:  # the CPU has no such kernel: the values are unknown from here on
                known = False
        if not known:
            for tensor in touched:
                self._lose(tensor)
            return
        flat = result if isinstance(result, (list, tuple)) else (result,)
        for output, value in zip(outputs, flat, strict=False):
            if output is None or not isinstance(value, torch.Tensor):
                continue
            if self._is_kept(output) and value.shape == output.shape:
                self.set(output, value)

    def on_host(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return what an operator answers for the values; None if some are not known."""
        known = True

        def twin(value: Any) -> Any:
            nonlocal known
            if isinstance(value, torch.Tensor) and value.is_meta:
                values = self.of(value)
                known = known and values is not None
                return values
            if isinstance(value, (list, tuple)):
                return type(value)(twin(item) for item in value)
            return value

        host_args = [twin(value) for value in args]
        host_kwargs = {key: twin(value) for key, value in kwargs.items()}
        return op(*host_args, **host_kwargs) if known else None

"""Values of small tensors, and bounds of unknown ones, for code that branches on them.

A tensor of the simulated GPU has no values. Masks, lengths, indices and tables of constants are
small, though, and programs read them: `mask.all()`, `lengths.max().item()`, `x[keep]`. Each storage
whose values are known has a copy with them in the host's memory; views share the copy as they share
the storage, and what an operator does to the one is done to the other. As soon as something unknown
is written to a storage, its copy is dropped; what is known from then on are bounds
(see value_bounds.py). Bounds too belong to the storage, and hold for all of its elements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from bsfind.simulation.trace.calls import Args, Kwargs, mapped
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    address_of,
    current_backward,
    without_fake,
)
from bsfind.simulation.trace.value_bounds import KnownBounds, Ranges, rule_of, several
from bsfind.simulation.trace.value_kernels import CPU_KERNELS
from bsfind.simulation.trace.value_rules import range_of_values
from bsfind.workload.state import DeviceValues

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

_COMPUTED_ANYWAY = _FACTORIES_LIKE | _KEEPS_VALUES
"""What these do to values does not follow from what is known of their arguments."""


class _UnknownValueError(Exception):
    """An operator reads values that are not known."""


class TooMuchComputedError(BaseException):
    """A step computes more than it may: not an `Exception`, which the user's code may catch."""


class Values:
    """The values that are known of tensors on the simulated GPU.

    Attributes:
        ranges: bounds of values that are not known.
        keeps_all: whether the values of all tensors are kept, those of weights and of activations too
            (see value_steps.py).
        is_updating: whether an optimizer makes its step, whose results are not kept.
        computed_bytes: size of all results of operators that were kept.
        most_computed: which size of these is too much (`TooMuchComputedError`); None: none is.
    """

    def __init__(self) -> None:
        self._copies: dict[int, torch.Tensor] = {}
        self._counts: dict[int, dict[tuple[Any, ...], int]] = {}
        self.keeps_all = self.is_updating = False
        self.computed_bytes = 0
        self.most_computed: int | None = None
        self.ranges = Ranges(self.of)

    @contextlib.contextmanager
    def none_of_optimizers(self) -> Iterator[None]:
        """Keep nothing that optimizers compute: no shape depends on it, and it is large."""

        def begin(_: torch.optim.Optimizer, args: Args, kwargs: Kwargs) -> None:
            runs_model = len(args) > 1 or kwargs.get("closure") is not None
            self.is_updating = not runs_model

        def end(*_: object) -> None:
            self.is_updating = False

        hooks = register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)
        try:
            yield
        finally:
            self.is_updating = False
            for hook in hooks:
                hook.remove()

    def forget_storage(self, key: int) -> None:
        """Drop what is known of a storage."""
        self._copies.pop(key, None)
        self._counts.pop(key, None)
        self.ranges.forget_storage(key)

    def count_of(self, mask: torch.Tensor) -> int | None:
        """Return how many elements an unknown mask selects, if `set_count` said so of it."""
        counts = self._counts.get(address_of(mask.untyped_storage())) if self._counts else None
        return None if counts is None else counts.get(_view_of(mask))

    def set_count(self, mask: torch.Tensor, count: int) -> None:
        """Keep how many elements an unknown mask selects, until something is written to it."""
        key = address_of(mask.untyped_storage())
        self._counts.setdefault(key, {})[_view_of(mask)] = count

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
        is_large = storage.nbytes() > 8 * _MAX_EXACT and not self.keeps_all
        if is_large or not self._is_kept(tensor):
            self.forget_storage(address_of(storage))
            return
        self.ranges.forget_storage(address_of(storage))
        self._copies[address_of(storage)] = torch.empty(storage.nbytes(), dtype=torch.uint8)
        own = self.of(tensor)
        assert own is not None
        own.copy_(values)

    def _adopt(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the values of a tensor in their own storage, which is as large as the tensor's."""
        key = address_of(tensor.untyped_storage())
        self.ranges.forget_storage(key)
        self._copies[key] = torch.empty(0, dtype=torch.uint8).set_(values.untyped_storage())

    def _is_given(self, values: torch.Tensor, args: Args) -> bool:
        """Tell whether values lie in the storage of an argument: not every operator says so."""
        found = False

        def look(value: Any) -> None:
            nonlocal found
            known = self.of(value) if isinstance(value, torch.Tensor) and value.is_meta else value
            if isinstance(known, torch.Tensor) and known.layout is torch.strided:
                found = found or address_of(known.untyped_storage()) == address_of(
                    values.untyped_storage()
                )

        mapped(args, look)
        return found

    def _is_kept(self, tensor: torch.Tensor) -> bool:
        count = tensor.numel()
        if count > _MAX_FLOAT and not self.keeps_all:
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
        if self._counts:
            for tensor in mutated:
                self._counts.pop(address_of(tensor.untyped_storage()), None)
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

    def follow_again(
        self,
        name: str,
        bounds: KnownBounds,
        args: Args,
        kwargs: Kwargs,
        tensors: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> bool:
        """Update bounds by what an operator did, where no more is known of its arguments.

        Then the bounds of the results follow from those of the arguments and what a call's key says
        (see `calls.key_of`).

        Args:
            name: name of the operator's schema.
            bounds: what followed for this call before; kept for the next time.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
            tensors: the tensors among both.
            outputs: as of `follow`.
            mutated: as of `follow`.

        Returns:
            Whether that was all; if not, nothing was done, and `follow` has to do it.
        """
        if not tensors or self.keeps_all or self._counts or name in _COMPUTED_ANYWAY:
            return False
        copies = self._copies
        storages = []
        for tensor in tensors:
            storage = address_of(tensor.untyped_storage())
            if storage in copies or not tensor.is_meta:
                return False
            storages.append(storage)
        rule = rule_of(name, is_in_place=bool(mutated))
        if rule is None:
            if mutated and self.ranges:
                for tensor in mutated:
                    self.ranges.forget_storage(address_of(tensor.untyped_storage()))
            return True
        given = self.ranges.known_of(storages)
        if given not in bounds:
            answer = several(rule(self.ranges.of, args, kwargs))
            is_value = any(known is not None and known.is_decided for known in answer)
            is_nothing = not mutated and not any(answer)
            bounds[given] = None if is_value else [] if is_nothing else answer
        following = bounds[given]
        if following is None:
            return False
        if following:
            self.ranges.keep(following, (*mutated, *outputs))
        return True

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
            if self._is_unknown(name):
                raise _UnknownValueError
            kernel = CPU_KERNELS.get(name, op) if self.keeps_all else op
            result = self._run(kernel, args, kwargs, ignores_values=name in _FACTORIES_LIKE)
        except Exception:  # the CPU may have no such kernel: the values are unknown from here on
            for tensor in touched:
                if self.keeps_all and tensor.requires_grad and tensor.is_leaf:
                    continue  # gradients are not computed, and weights stay as they are
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
                self.computed_bytes += value.nbytes
                if self.keeps_all and _is_alike(value, output) and not self._is_given(value, args):
                    self._adopt(output, value)
                else:
                    self.set(output, value)
        if self.most_computed is not None and self.computed_bytes > self.most_computed:
            raise TooMuchComputedError

    def _is_unknown(self, name: str) -> bool:
        """Tell whether an operator's results are unknown, whatever its arguments are."""
        if not self.keeps_all:
            return name in _RANDOM
        # Of a backward pass, recomputed activations are needed, and gradients are not.
        return self.is_updating or (current_backward() != -1 and not torch.is_grad_enabled())

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


def _view_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _is_alike(values: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Tell whether values are strided as a tensor is, in a storage of its size."""
    return (
        values.layout is tensor.layout is torch.strided
        and values.dtype == tensor.dtype
        and (values.stride(), values.storage_offset()) == (tensor.stride(), tensor.storage_offset())
        and values.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    )


class KnownValues(DeviceValues):
    """Reads and writes the values that are known of tensors on the simulated GPU.

    Args:
        values: what is known.
        device: the device that the tensors seem to be on.
    """

    are_whole = False

    def __init__(self, values: Values, device: torch.device) -> None:
        super().__init__(device)
        self._known = values

    def read(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return what is known of a tensor that is all of its storage (see `DeviceValues.read`)."""
        with TorchFunctionOff(), without_fake():
            known = self._known.of(tensor)
            nbytes = tensor.numel() * tensor.element_size()
            if known is None or nbytes != tensor.untyped_storage().nbytes():
                return None
            return known.clone()

    def write(self, tensor: torch.Tensor, copy: torch.Tensor) -> None:
        """Know the values again (see `DeviceValues.write`)."""
        with TorchFunctionOff(), without_fake():
            self._known.set(tensor, copy)

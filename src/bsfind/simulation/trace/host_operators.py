"""Operators on the host while there are tensors of the host that have no values.

A large tensor of the host is a meta tensor, as parameters are, from the operator on that makes it:
a model may be larger than the memory of the host. What is computed from one has no values either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from bsfind.simulation.trace.calls import flat_tensors
from bsfind.simulation.trace.host_storages import is_large

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, OperatorFacts


_META = torch.device("meta")


class HostOperators:
    """Runs operators of the host that make, or take, tensors without values.

    Args:
        dispatcher: knows which meta tensors lie in the host's memory.

    Attributes:
        makes_large: called with each large tensor that an operator is about to make; None: such
            tensors are made as any other. Tells whether the tensor is made without its values.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.makes_large: Callable[[torch.Tensor], bool] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no operator needs a look."""
        return self.makes_large is None and not self._dispatcher.host

    def run(self, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; NotImplemented: it can be run as any other."""
        device = kwargs.get("device")
        if device is not None and device.type != "cpu":
            return NotImplemented
        tensors = list(_tensors(args, kwargs))
        metas = [tensor for tensor in tensors if tensor.is_meta]
        if metas:
            return self._mixed(facts, args, kwargs, metas, len(metas) < len(tensors))
        if self.makes_large is None or facts.mutated or facts.is_aliasing:
            return NotImplemented
        return self._large(facts, args, kwargs, is_factory=not tensors)

    def _mixed(
        self,
        facts: OperatorFacts,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        metas: Sequence[torch.Tensor],
        has_real: bool,
    ) -> Any:
        """Run an operator of tensors that have values and others that have none."""
        dispatcher = self._dispatcher
        if not all(map(dispatcher.host.has, metas)):
            return NotImplemented
        if "device" in kwargs and facts.name != "aten::_to_copy":  # `empty_like` and the like
            with dispatcher.moving("host"):
                return dispatcher.dispatch(facts, args, {**kwargs, "device": _META})
        if kwargs.get("generator") is not None:
            kwargs = {**kwargs, "generator": None}  # of the host: meta kernels refuse it
        elif not has_real or facts.name == "aten::copy_":
            return NotImplemented
        twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def on_meta(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_meta or not tensor.dim() or tensor.layout is not torch.strided:
                return tensor
            if id(tensor) not in twins:
                twins[id(tensor)] = (dispatcher.as_host_meta(tensor), tensor)
            return twins[id(tensor)][0]

        out = dispatcher.dispatch(facts, *_replaced(args, kwargs, on_meta))
        for twin, tensor in twins.values():
            if out is twin:  # it was written to: what it holds now nobody knows
                return tensor
        return out

    def _large(
        self,
        facts: OperatorFacts,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_factory: bool,
    ) -> Any:
        """Run an operator whose result is large; others are left to those who called."""
        assert self.makes_large is not None
        options = {
            name: None if name == "generator" else value
            for name, value in kwargs.items()
            if name != "pin_memory"
        }
        if is_factory or "device" in options:
            options["device"] = _META
        dispatcher = self._dispatcher
        with dispatcher.unseen():
            try:
                meta_args, meta_options = _replaced(args, options, _like)
                out = facts.op(*meta_args, **meta_options)
            except Exception:  # its result depends on values, or it takes no `device`
                return NotImplemented
        outputs = [tensor for tensor in flat_tensors(out) if tensor is not None]
        large = [tensor for tensor in outputs if tensor.is_meta and is_large(tensor)]
        if not large or not all(map(self.makes_large, large)):
            return NotImplemented
        for tensor in outputs:
            dispatcher.host.add(tensor)
        with dispatcher.unseen():
            dispatcher.values.follow_ranges(facts.name, args, kwargs, outputs)
        return out


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=_META)


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (item for item in value if isinstance(item, torch.Tensor))


def _replaced(
    args: Sequence[Any], kwargs: dict[str, Any], replace: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with other tensors in place of its own."""

    def replaced(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return replace(value)
        if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            return [replaced(item) for item in value]
        return value

    return tuple(map(replaced, args)), {name: replaced(value) for name, value in kwargs.items()}

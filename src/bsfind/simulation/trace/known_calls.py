"""Remembers what operators return for shapes that were seen before.

torch's meta kernels are largely written in Python and take a hundred times as long as it takes to
make their outputs. Layers repeat, and so do steps: most calls are of shapes that have been answered
already. An operator's outputs follow from the shapes, strides and dtypes of its arguments, as long
as it neither aliases them nor reads values, and only such calls are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bsfind.simulation.kernels.call import Call
from bsfind.simulation.trace.torch_private import (
    address_of,
)

_Output = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

_PLAIN = (int, float, bool)
_BY_VALUE = (
    type(None),
    str,
    torch.dtype,
    torch.device,
    torch.memory_format,
    torch.layout,
)


class Uncacheable(Exception):  # noqa: N818 (a way out, not an error)
    """A call whose answer does not follow from its arguments' shapes."""


def key_of(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Return what a call's outputs depend on; None if that cannot be told.

    A call whose first argument is in the host's memory is real, and has to be made.
    """
    first = args[0] if args else None
    if isinstance(first, (list, tuple)):
        first = first[0] if first else None
    if isinstance(first, torch.Tensor) and not first.is_meta:
        return None
    try:
        key: list[Any] = [op, *map(_part, args)]
        for name, value in kwargs.items():
            key.append(name)
            key.append(_part(value))
        return tuple(key)
    except Uncacheable:
        return None


def _part(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.is_meta and value.layout is torch.strided:
            return value.shape, value.stride(), value.dtype
        if not value.is_meta and not value.shape:
            return "host", value.dtype
        raise Uncacheable
    if isinstance(value, _PLAIN):
        return value.__class__, value  # 1, 1.0 and True are equal, and are not the same
    if isinstance(value, (list, tuple)):
        return tuple([_part(item) for item in value])
    if isinstance(value, _BY_VALUE):
        return value
    raise Uncacheable


class KnownCall:
    """The answer to a call.

    Attributes:
        call: the description of the call for its rule; None until it is needed.
    """

    __slots__ = ("_in_place", "_outputs", "_type", "call")

    def __init__(self, outputs: list[_Output | None] | None, kind: type | None) -> None:
        self._outputs = outputs
        self._type = kind
        self._in_place = outputs is None
        self.call: Call | None = None

    @classmethod
    def in_place(cls) -> KnownCall:
        """Return the answer of an operator that writes to its first argument and returns it."""
        return cls(None, None)

    @classmethod
    def of(cls, out: Any, args: Sequence[Any]) -> KnownCall | None:
        """Return the answer that an operator just gave; None if it cannot be given again.

        It cannot where a result shares an argument's storage, which not every schema declares.
        """
        if any(tensor.layout is not torch.strided for tensor in _metas((out,))):
            return None
        given = {address_of(tensor.untyped_storage()) for tensor in _metas(args)}
        if any(address_of(tensor.untyped_storage()) in given for tensor in _metas((out,))):
            return None
        if isinstance(out, torch.Tensor):
            output = _described(out)
            return None if output is None else cls([output], None)
        if not isinstance(out, (tuple, list)):
            return None
        outputs: list[_Output | None] = []
        for item in out:
            output = _described(item) if isinstance(item, torch.Tensor) else None
            if output is None and item is not None:
                return None
            outputs.append(output)
        return cls(outputs, type(out))

    def answer(self, args: Sequence[Any]) -> Any:
        """Return fresh outputs like those of the first call."""
        if self._in_place:
            first = args[0]
            return first if isinstance(first, torch.Tensor) else None
        assert self._outputs is not None
        made = [
            None
            if output is None
            else torch.empty_strided(output[0], output[1], dtype=output[2], device="meta")
            for output in self._outputs
        ]
        return made[0] if self._type is None else self._type(made)


def _described(tensor: torch.Tensor) -> _Output | None:
    if not tensor.is_meta or tensor.layout is not torch.strided or tensor.storage_offset():
        return None
    shape, stride = tuple(tensor.shape), tensor.stride()
    extent = 0
    if tensor.numel():
        extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if tensor.untyped_storage().nbytes() != extent * tensor.element_size():
        return None
    return shape, stride, tensor.dtype


def _metas(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_meta:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _metas(value)

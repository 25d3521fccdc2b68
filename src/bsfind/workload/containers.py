"""The tensors in what a batch is made of: lists, dicts, packed sequences, graphs and other objects."""

from __future__ import annotations

import copy
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

DEEPEST = 6
"""Containers and objects inside each other that are looked into."""

_WITHOUT_TENSORS = (str, bytes, numbers.Number, type, nn.Module, torch.device, torch.dtype)


def mapped(
    value: Any,
    change: Callable[[torch.Tensor], torch.Tensor],
    move: Callable[[Any], Any] | None = None,
    depth: int = 0,
) -> Any:
    """Return a value whose tensors are changed; what has no such tensor stays the object that it is.

    Args:
        value: a tensor, or what has tensors in it.
        change: returns what takes the place of a tensor.
        move: does so for an object with a method `to`; None: its tensors are changed. The lengths of a
            packed sequence stay on the CPU, and graphs know where all their parts are.
        depth: containers around the value.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if value is None or isinstance(value, _WITHOUT_TENSORS) or depth > DEEPEST:
        return value
    can_move = callable(getattr(value, "to", None))
    if can_move and move is not None:
        return move(value)
    if isinstance(value, PackedSequence):
        data, *others = value
        return PackedSequence(change(data), *others)
    if can_move and callable(getattr(value, "apply", None)):  # PyTorch Geometric, TensorDict
        # A graph asks about its numbers too.
        return copy.copy(value).apply(lambda x: change(x) if isinstance(x, torch.Tensor) else x)

    def of(part: Any) -> Any:
        return mapped(part, change, move, depth + 1)

    if isinstance(value, (list, tuple)):
        parts = [of(part) for part in value]
        if all(map(operator.is_, parts, value)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    is_mapping = isinstance(value, Mapping)
    old = dict(value) if is_mapping else dict(getattr(value, "__dict__", {}))
    new = {name: of(part) for name, part in old.items()}
    changed = {name: part for name, part in new.items() if part is not old[name]}
    if not changed:
        return value
    made = copy.copy(value)
    for name, part in changed.items():
        if is_mapping:
            made[name] = part
        else:
            object.__setattr__(made, name, part)  # a frozen dataclass is one too
    return made

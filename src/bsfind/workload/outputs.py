"""The tensors of a model's output: their paths in it, and the parameters that they train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError

Path = tuple[Any, ...]
"""Path of a tensor in an output: keys of mappings, indices of sequences, names of attributes."""


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what a rank holds of a tensor: its shard, where it is sharded."""
    to_local: Any = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor
    with torch.no_grad():
        part: torch.Tensor = to_local()
    return part


def is_sharded(tensor: torch.Tensor) -> bool:
    """Tell whether a rank holds a part of a tensor only (`DTensor.placements`)."""
    return any(placement.is_shard() for placement in getattr(tensor, "placements", ()))


def leaves(output: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield the tensors of an output with their paths, in tuples, lists, mappings and objects too."""
    if isinstance(output, torch.Tensor):
        yield path, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from leaves(value, (*path, key))
    elif isinstance(output, (list, tuple)):
        for index, value in enumerate(output):
            yield from leaves(value, (*path, index))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from leaves(getattr(output, field.name), (*path, field.name))
    elif hasattr(output, "__dict__") and not isinstance(output, (nn.Module, type)):
        for name, value in vars(output).items():
            if isinstance(value, torch.Tensor):
                yield (*path, name), value


def float_leaves(output: Any) -> list[tuple[Path, torch.Tensor]]:
    """Return the floating tensors of an output, with their paths."""
    return [(path, tensor) for path, tensor in leaves(output) if tensor.is_floating_point()]


def nbytes_of(output: Any) -> int:
    """Return the bytes of an output's tensors; each storage counts once, scalars do not count."""
    storages = {}
    for _, tensor in leaves(output):
        if tensor.dim() and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def named(output: Any, name: str) -> torch.Tensor | None:
    """Return the tensor that is an item or attribute of the output by this name, if there is one."""
    if isinstance(output, torch.Tensor):
        return None
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return value if isinstance(value, torch.Tensor) else None


def tensor_at(output: Any, path: Path) -> torch.Tensor:
    """Return the tensor at a path that `leaves` found, in the output of another step.

    Raises:
        TargetError: there is none.
    """
    found = output
    try:
        for step in path:
            is_attribute = isinstance(step, str) and not isinstance(found, Mapping)
            found = getattr(found, step) if is_attribute else found[step]
    except (AttributeError, IndexError, KeyError, TypeError):
        found = None
    if not isinstance(found, torch.Tensor):
        raise TargetError(
            f"the model's output has changed from one step to another: {name_of(path)} is gone",
            hint="pass the loss as a function, `--loss pkg.mod:fn`, or the step, `--step pkg.mod:fn`",
        )
    return found


def name_of(path: Path) -> str:
    """Return a name for a tensor of the output: `the output`, `output[1]`, `output["aux"]`."""
    if not path:
        return "the output"
    return "output" + "".join(
        f'["{step}"]' if isinstance(step, str) else f"[{step}]" for step in path
    )


def trained_by(
    tensors: Iterable[torch.Tensor], *, beyond: torch.Tensor | None = None
) -> frozenset[Any]:
    """Return the leaf nodes of the autograd graph of tensors: one for each parameter that they train.

    Args:
        tensors: tensors of an output.
        beyond: another tensor of the output; nodes behind it are left out.
    """
    end = beyond.grad_fn if beyond is not None else None
    return frozenset(node for node in _graph(tensors, end) if not node.next_functions)


def is_made_from(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether a tensor of an output is computed from another tensor of it."""
    if tensor.grad_fn is other.grad_fn:
        return False  # the same tensor, or two results of one operator
    return other.grad_fn in _graph([tensor], other.grad_fn)


def _graph(tensors: Iterable[torch.Tensor], end: Any) -> set[Any]:
    """Return the autograd nodes of tensors without those behind the node `end`."""
    seen: set[Any] = set()
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            if node is not end:
                waiting.extend(other for other, _ in node.next_functions if other is not None)
    return seen

"""Sparse gradients, as `nn.Embedding(..., sparse=True)` makes them: indices and values, no storage.

Their parts are tensors like others; what makes new parts has no kernel for tensors of the meta
device. aten/src/ATen/native/sparse/cuda/SparseCUDATensor.cu (torch 2.6-2.13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts

from bsfind.simulation.trace.torch_private import (
    address_of,
    indices_of,
    values_of,
)


def sparse_handlers() -> dict[str, Handler]:
    """Return the handlers of operators that take sparse tensors."""
    return {
        "aten::_coalesce": _coalesce,
        "aten::sparse_mask": _sparse_mask,
        "aten::add_.Tensor": _add_in_place,
    }


def _add_in_place(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Add to a tensor; a sparse one is added to a dense one by one kernel."""
    total, part = args[:2]
    is_sparse = isinstance(part, torch.Tensor) and part.layout is torch.sparse_coo
    if is_sparse and total.layout is torch.strided and total.is_meta:
        dispatcher.values.forget_storage(address_of(total.untyped_storage()))
        return total
    return dispatcher.run(facts, args, kwargs)


def _coalesce(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Sum the values of equal indices; where these are not known, all are taken to differ."""
    (sparse,) = args
    if not sparse.is_meta:
        return dispatcher.compute(facts, args, kwargs)
    indices, values = indices_of(sparse), values_of(sparse)
    known = dispatcher.values.of(indices)
    distinct = None if known is None else torch.unique(known, dim=1)
    count = indices.shape[1] if distinct is None else distinct.shape[1]
    with dispatcher.unseen():
        new_indices = indices.new_empty((indices.shape[0], count))
        new_values = values.new_empty((count, *values.shape[1:]))
        out = _sparse(new_indices, new_values, sparse)
    dispatcher.record(facts, (indices,), kwargs, out)  # the rule reads how many there were
    if distinct is not None:
        dispatcher.values.set(indices_of(out), distinct)
    return out


def _sparse_mask(
    dispatcher: Dispatcher, facts: OperatorFacts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Read a dense tensor at the indices of a sparse one: new values, and a copy of the indices."""
    dense, mask = args
    if not mask.is_meta or dense.layout is not torch.strided:
        return dispatcher.run(facts, args, kwargs)
    values, indices = values_of(mask), indices_of(mask)
    values = torch.empty_like(values, dtype=dense.dtype, memory_format=torch.contiguous_format)
    indices = indices.clone()
    with dispatcher.unseen():
        return _sparse(indices, values, mask)


def _sparse(indices: torch.Tensor, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        indices, values, like.shape, check_invariants=False, is_coalesced=True
    )

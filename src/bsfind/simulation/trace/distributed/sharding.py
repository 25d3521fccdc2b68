"""FSDP2: its operators, with the bodies that they have on CUDA, and the shards of parameters.

Of torch/distributed/fsdp/_fully_shard, torch 2.6-2.13: `_fsdp_collectives.py`, `_fsdp_common.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.distributed.collectives import on_gpu
from bsfind.simulation.trace.recorder import ParallelMemory
from bsfind.simulation.trace.torch_private import replacing_chunks

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts

aten = torch.ops.aten


def sharding_handlers() -> dict[str, Handler]:
    """Return the handlers of these operators."""
    return {
        "fsdp::all_gather_copy_in": _all_gather_copy_in,
        "fsdp::split_with_sizes_copy": _split_with_sizes_copy,
        "fsdp::chunk_cat": _chunk_cat,
    }


def few_shards() -> AbstractContextManager[None]:
    """Let FSDP2 make the shards that it looks at, its own rank's and the first, and no others, while inside.

    They are views, or empty: neither takes memory, and 1024 of each parameter take long to trace.
    """
    return replacing_chunks(_Shards)


class _Shards(Sequence[torch.Tensor]):
    """The shards of a parameter for all ranks, each made when it is looked at (`_chunk_with_empty`).

    Args:
        tensor: the parameter.
        num_chunks: number of ranks.
        dim: dimension that is divided.
    """

    def __init__(self, tensor: torch.Tensor, num_chunks: int, dim: int) -> None:
        self._tensor, self._count, self._dim = tensor, num_chunks, dim
        self._rows = tensor.size(dim)
        self._each = math.ceil(self._rows / num_chunks)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rank: Any) -> Any:
        if isinstance(rank, slice):
            return [self[each] for each in range(*rank.indices(self._count))]
        number = range(self._count)[rank]
        start = number * self._each
        if self._rows and start >= self._rows:
            return self._tensor.new_empty(0)
        return self._tensor.narrow(self._dim, start, min(self._each, self._rows - start))


def _all_gather_copy_in(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> Any:
    """Copy the shards of a module to where all ranks' are gathered.

    In mixed precision they are first cast, to parts of one flat tensor.
    """
    result = dispatcher.run(facts, args, kwargs)
    _tell(dispatcher, "all_gather_buffers", (args[0], result))
    return result


def _split_with_sizes_copy(
    dispatcher: Dispatcher, _: OperatorFacts, args: Args, kwargs: Kwargs
) -> None:
    """Copy what was gathered to the parameters of a module."""
    torch.split_with_sizes_copy(*args, **kwargs)
    _tell(dispatcher, "unsharded_parameters", kwargs["out"])


def _chunk_cat(dispatcher: Dispatcher, _: OperatorFacts, args: Args, kwargs: Kwargs) -> None:
    """Copy the gradients of a module to where they are reduced and scattered from."""
    aten._chunk_cat.out(*args, **kwargs)
    _tell(dispatcher, "unsharded_gradients", args[0])
    _tell(dispatcher, "reduce_scatter_buffers", kwargs["out"])


def _tell(dispatcher: Dispatcher, kind: ParallelMemory, tensors: Any) -> None:
    storages = [tensor.untyped_storage() for tensor in on_gpu(tensors)]
    dispatcher.recorder.observer.has_parallel(kind, storages)

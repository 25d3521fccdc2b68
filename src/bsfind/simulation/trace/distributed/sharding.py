"""The operators of FSDP2: the bodies that they have on CUDA (`_fsdp_collectives.py`, torch 2.6-2.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.distributed.collectives import on_gpu
from bsfind.simulation.trace.recorder import ParallelMemory

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

"""The operators of FSDP2: the bodies that they have on CUDA (`_fsdp_collectives.py`, torch 2.6-2.13)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bsfind.simulation.trace.calls import Args, Kwargs

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts

aten = torch.ops.aten


def sharding_handlers() -> dict[str, Handler]:
    """Return the handlers of these operators."""
    return {"fsdp::split_with_sizes_copy": _split_with_sizes_copy, "fsdp::chunk_cat": _chunk_cat}


def _split_with_sizes_copy(_: Dispatcher, __: OperatorFacts, args: Args, kwargs: Kwargs) -> None:
    torch.split_with_sizes_copy(*args, **kwargs)


def _chunk_cat(_: Dispatcher, __: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    aten._chunk_cat.out(*args, **kwargs)

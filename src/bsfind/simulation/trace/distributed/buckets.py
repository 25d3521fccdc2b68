"""Tells which storages are DistributedDataParallel's buckets: what its `Reducer` makes and keeps.

It makes them at its construction, and anew before the second forward pass, in the order in which
gradients came (torch/csrc/distributed/c10d/reducer.cpp, torch 2.6-2.13).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed

from bsfind.simulation.trace.recorder import Recorder
from bsfind.simulation.trace.torch_private import (
    rebuild_buckets,
    replacing,
    replacing_rebuild_buckets,
)

distributed: Any = torch.distributed


@contextlib.contextmanager
def buckets_told(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder's observer of the buckets that are made while inside.

    Args:
        recorder: records their allocation.
    """

    def telling(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            first = recorder.count
            result = make(*args, **kwargs)
            kept = [storage for _, storage in recorder.alive_since(first)]
            recorder.observer.has_parallel("gradient_buckets", kept)
            return result

        return made

    with (
        replacing("Reducer", distributed)(telling(distributed.Reducer)),
        replacing_rebuild_buckets(telling(rebuild_buckets)),
    ):
        yield

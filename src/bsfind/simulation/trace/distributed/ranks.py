"""All that the tracer does for one rank of a training on several GPUs, and only for that."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bsfind.simulation.trace.torch_private import replacing

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler
    from bsfind.simulation.trace.distributed.batch_norm import SynchronizedStatistics


def parallel_handlers() -> dict[str, Handler]:
    """Return the handlers of operators that ranks of a training call."""
    import torch.distributed.fsdp  # noqa: F401 (defines operators)

    from bsfind.simulation.trace.distributed.collectives import collective_handlers
    from bsfind.simulation.trace.distributed.sharding import sharding_handlers

    return {**collective_handlers(), **sharding_handlers(), **_statistics().handlers()}


@functools.cache
def _statistics() -> SynchronizedStatistics:
    from bsfind.simulation.trace.distributed.batch_norm import SynchronizedStatistics

    return SynchronizedStatistics()


@contextlib.contextmanager
def parallel_torch(dispatcher: Dispatcher) -> Iterator[None]:
    """Let this thread's torch be that of a rank while inside.

    Args:
        dispatcher: the dispatcher of the trace, which is active.
    """
    import torch.distributed

    from bsfind.simulation.trace.distributed.buckets import buckets_told
    from bsfind.simulation.trace.distributed.sharding import few_shards
    from bsfind.simulation.trace.distributed.storages import storages_told_apart
    from bsfind.simulation.trace.distributed.subclasses import wrapped_tensors
    from bsfind.workload.parallel import close_group

    # DistributedDataParallel times the GPU, and warns where it has no timer for a device.
    distributed: Any = torch.distributed
    untimed = replacing("set_runtime_stats_and_log", distributed.Logger)
    try:
        with (
            untimed(lambda _: None),
            _statistics().active(),
            buckets_told(dispatcher.recorder),
            storages_told_apart(dispatcher.recorder),
            few_shards(),
            wrapped_tensors(dispatcher),
        ):
            yield
    finally:
        close_group()

"""What NCCL takes of the GPU in a process group of one rank, outside PyTorch's allocator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.context import Outside
from benchmarks.real_gpu.steps import LeftOutError, Options, Row, Step
from torch import nn

from bsfind.simulation.gpus.nccl_memory import nccl_bytes
from bsfind.units import MIB

__all__ = ["STEP"]


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Yield the memory before the group, after its first collective, and after DDP's first step."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_nccl_available():
        raise LeftOutError("this torch has no NCCL")
    outside = Outside(card)
    x = torch.ones(1 << 20, device="cuda")
    model = nn.Linear(512, 512).cuda()
    model(torch.ones(8, 512, device="cuda")).sum().backward()
    predicted = nccl_bytes([1])
    yield {"after": "a step without NCCL", **outside.now(), "predicted_bytes": 0}
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    yield {"after": "init_process_group", **outside.now(), "predicted_bytes": predicted}
    distributed.all_reduce(x)
    yield {"after": "all_reduce", **outside.now(), "predicted_bytes": predicted}
    parallel = nn.parallel.DistributedDataParallel(model, device_ids=[0])
    parallel(torch.ones(8, 512, device="cuda")).sum().backward()
    yield {"after": "a step of DDP", **outside.now(), "predicted_bytes": predicted}


def summarise(rows: list[Row]) -> Row:
    """Return what the group took, by the difference to a step without one."""
    known = [row["outside_bytes"] for row in rows]
    if len(known) < 2 or None in known:
        return {}
    return {
        "taken, MiB": round((known[-1] - known[0]) / MIB),
        "predicted, MiB": round(rows[-1]["predicted_bytes"] / MIB),
    }


STEP = Step(
    name="nccl",
    title="NCCL, one rank",
    measure=measure,
    summarise=summarise,
    columns=("after", "outside_bytes", "reserved_bytes", "predicted_bytes"),
    most_s=30,
)

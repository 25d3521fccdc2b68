"""Models as they are wrapped for several GPUs, on torch's fake process group and on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.models.blocks import Blocks
from torch import nn
from torch.distributed.tensor import DTensor

from bsfind.errors import TargetError
from bsfind.parallel import Parallel
from bsfind.workload.optimizer import make_optimizer
from bsfind.workload.parallel import FSDP_ROOT_ONLY, Parallelized, close_group, partitioned
from bsfind.workload.precision import precision_plan

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_group_is_left() -> Iterator[None]:
    yield
    close_group()


def wrapped(model: nn.Module, precision: str = "fp32", **asked: object) -> Parallelized:
    parallel = Parallel(**{"world_size": 4, **asked})  # type: ignore[arg-type]
    return Parallelized(model, parallel, CPU, precision_plan(precision))


def step(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 64)).square().mean().backward()
    optimizer.step()
    return optimizer


@pytest.mark.one_torch  # FSDP2 on the CPU
def test_blocks_that_repeat_are_sharded() -> None:
    found = wrapped(Blocks(width=32, blocks=3), strategy="fsdp")
    assert found.sharded == {"Block": 3}
    assert not found.notes
    (ranks, sharding) = found.assumptions
    assert (ranks.what, ranks.value) == ("ranks", "rank 0 of 4, the others absent")
    assert sharding.value.startswith("Block × 3 and the root, ")
    step(found.model)
    assert all(isinstance(parameter, DTensor) for parameter in found.model.parameters())
    assert found.assumptions[1] == sharding  # not what is gathered now


def test_classes_that_are_named_are_sharded() -> None:
    found = wrapped(Blocks(width=32, blocks=3), strategy="fsdp", shard_by=("Linear",))
    assert found.sharded == {"Linear": 8}
    with pytest.raises(
        TargetError, match="`--shard-by Layer`: the model has no module of this class"
    ):
        wrapped(Blocks(width=32), strategy="fsdp", shard_by=("Layer",))


def test_a_model_without_blocks() -> None:
    found = wrapped(nn.Sequential(nn.Linear(64, 8), nn.ReLU()), strategy="fsdp")
    assert found.notes == {"fsdp_root_only": FSDP_ROOT_ONLY}


class Tied(nn.Module):
    """A language model whose last layer has the weights of the first."""

    _no_split_modules = ("Embedding", "Linear")

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.middle = nn.Linear(64, 64)
        self.last = nn.Linear(64, 100, bias=False)
        self.last.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(self.embedding(ids)))


@pytest.mark.one_torch  # FSDP2 on the CPU
def test_shared_parameters_are_sharded_together() -> None:
    found = wrapped(Tied(), "mp-bf16", strategy="fsdp")
    assert found.sharded == {"Linear": 1}
    assert found.model.last.weight is found.model.embedding.weight
    found.model(torch.zeros(6, dtype=torch.int64)).mean().backward()


@pytest.mark.one_torch  # FSDP2 on the CPU
def test_what_a_forward_pass_has_gathered_is_released() -> None:
    found = wrapped(Blocks(width=32, blocks=2), strategy="hsdp", replicas=2)
    with torch.no_grad():
        found.model(torch.randn(2, 64))
    assert not isinstance(found.model.first.weight, DTensor)
    found.reshard()
    assert isinstance(found.model.first.weight, DTensor)


def test_zero1_steps_a_part_of_the_parameters() -> None:
    held = []
    for rank in range(4):
        found = wrapped(Blocks(width=32, blocks=3), strategy="ddp", rank=rank)
        plain = make_optimizer("adamw", {"lr": 0.5}, found.model)
        optimizer = partitioned(plain)
        parts = optimizer.optim.param_groups  # type: ignore[attr-defined]
        assert {group["lr"] for group in parts} == {0.5}
        held.append(sum(each.numel() for group in parts for each in group["params"]))
    limiting = wrapped(Blocks(width=32, blocks=3), strategy="zero1")
    assert held.index(max(held)) == limiting.rank
    assert sum(held) == sum(each.numel() for each in Blocks(width=32, blocks=3).parameters())
    assert max(held) < 0.6 * sum(held)


def test_another_optimizer_of_zero1() -> None:
    found = wrapped(Blocks(width=32), strategy="ddp")
    optimizer = partitioned(make_optimizer("sgd", {"lr": 1.0, "momentum": 0.9}, found.model))
    inner = optimizer.optim  # type: ignore[attr-defined]
    assert type(inner) is torch.optim.SGD
    assert inner.param_groups[0]["momentum"] == 0.9


def sharded_by_hand(model: nn.Module, mesh: object) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh)  # type: ignore[call-overload, no-any-return]


def no_module(model: nn.Module, mesh: object) -> None:
    del model, mesh


def test_a_function_of_the_users_wraps_the_model() -> None:
    found = wrapped(Blocks(width=32), strategy=f"{__file__}:sharded_by_hand")
    assert isinstance(found.model.first.weight, DTensor)
    with pytest.raises(TargetError, match=r"returned `NoneType`, not an `nn\.Module`"):
        wrapped(Blocks(width=32), strategy=f"{__file__}:no_module")

"""What the memory of one rank of a training on several GPUs is made of."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from tests.exhaustive import exhaustive
from tests.models.blocks import Blocks
from tests.simulation.test_attribution import fresh, traced

from bsfind.inputs import parse_input_shape
from bsfind.inspect.attribution import Attribution
from bsfind.inspect.compose import AttributedTrial, categories_of, compose
from bsfind.parallel import Parallel
from bsfind.settings import Workload
from bsfind.simulation.trace.program import Program

pytestmark = pytest.mark.one_torch

MODEL = Blocks()
NUMBER = sum(parameter.numel() for parameter in MODEL.parameters())
RANKS = 8


def trial_of(
    strategy: str,
    *arguments: tuple[str, str],
    precision: str = "fp32",
    rank: int = 0,
    grad_accum: int = 1,
) -> tuple[AttributedTrial, Program]:
    """Return a trial, and its program as it is when nobody observes it."""
    workload = Workload(
        target="tests/models/blocks.py:Blocks",
        inputs=(parse_input_shape("64"),),
        loss="cross-entropy",
        grad_accum=grad_accum,
        parallel=Parallel(strategy=strategy, world_size=RANKS, rank=rank, arguments=arguments),
    )
    plain, _ = traced(workload, precision, 4, None)
    attribution = Attribution()
    program, sources = traced(workload, precision, 4, attribution)
    return attribution.attributed(program, sources, trains=True), plain


def held(trial: AttributedTrial, position: int) -> Counter[str]:
    """Return what is allocated after an event, in bytes as they were requested, by category."""
    sizes: Counter[str] = Counter()
    blocks = zip(categories_of(trial), trial.lifetimes(), strict=True)
    for category, (allocated, freed) in blocks:
        if allocated <= position < freed:
            sizes[category] += trial.events[allocated]
    return sizes


def ends_of(trial: AttributedTrial, name: str) -> list[Counter[str]]:
    return [held(trial, place - 1) for place in trial.places(name)]


def padded(*modules: torch.nn.Module, shards: int = RANKS) -> int:
    """Return the number of elements of the parameters, whose first dimension `shards` divides."""
    return sum(
        math.ceil(len(parameter) / shards) * shards * math.prod(parameter.shape[1:])
        for module in modules
        for parameter in module.parameters()
    )


def in_backward_of(trial: AttributedTrial, module: str) -> Counter[str]:
    """Return what is allocated when the second step goes back through a module's ReLU."""
    second = trial.places("step_end")[0]
    position = next(
        allocated
        for allocation, (allocated, _) in zip(trial.allocations, trial.lifetimes(), strict=True)
        if allocated > second
        and allocation.module == module
        and trial.program.operators[allocated] == "aten::threshold_backward"
    )
    return held(trial, position)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp", "zero1"])
@pytest.mark.parametrize("precision", [exhaustive("fp32"), "amp-bf16"])
def test_the_sum_is_the_peak_of_the_replay(strategy: str, precision: str) -> None:
    trial, plain = trial_of(strategy, precision=precision)
    assert trial.program.trial_events == plain.trial_events
    assert trial.program.load_events == plain.load_events
    allocator = fresh()
    replayed = plain.replay(allocator, plain.load(allocator))
    found = compose(trial, fresh())
    assert found.peak_reserved_bytes == replayed.peak_reserved_bytes
    assert sum(found.categories.values()) == replayed.peak_allocated_bytes
    assert sum(share.total_bytes for share in found.modules) == replayed.peak_allocated_bytes


@pytest.mark.parametrize(("strategy", "shards"), [("fsdp", RANKS), ("hsdp", RANKS // 2)])
def test_a_rank_of_fsdp_holds_shards_and_gathers_a_block_at_a_time(
    strategy: str, shards: int
) -> None:
    trial, _ = trial_of(strategy)
    whole = padded(MODEL, shards=shards)
    block = padded(MODEL.blocks[2], shards=shards)
    root = padded(MODEL.first, MODEL.last, shards=shards)
    assert block == sum(parameter.numel() for parameter in MODEL.blocks[2].parameters())
    for end in ends_of(trial, "step_end"):
        assert end["sharded_parameters"] == 4 * whole // shards
        assert end["gradients"] == 4 * whole // shards
        assert end["optimizer_state"] == 8 * whole // shards
        assert not end.keys() & {"parameters", "unsharded_parameters", "unsharded_gradients"}
        assert not end.keys() & {"all_gather_buffers", "reduce_scatter_buffers"}
    for end in ends_of(trial, "forward_end"):
        assert end["unsharded_parameters"] == 4 * root  # which stays gathered
        assert end["sharded_parameters"] == 4 * whole // shards
    backward = in_backward_of(trial, "blocks.2")
    assert backward["unsharded_parameters"] == 4 * (block + root)
    assert backward["all_gather_buffers"] == 4 * block  # of the next block
    assert backward["reduce_scatter_buffers"] == 4 * block  # of the block before
    down, last = MODEL.blocks[2].down, MODEL.last
    unsharded = sum(p.numel() for part in (down, last) for p in part.parameters())
    assert backward["unsharded_gradients"] == 4 * unsharded


def test_gathered_parameters_have_the_dtype_of_the_policy() -> None:
    trial, _ = trial_of("fsdp", precision="mp-bf16")
    block, root = padded(MODEL.blocks[2]), padded(MODEL.first, MODEL.last)
    backward = in_backward_of(trial, "blocks.2")
    assert backward["sharded_parameters"] == 4 * padded(MODEL) // RANKS
    assert backward["unsharded_parameters"] == 2 * (block + root)
    assert backward["all_gather_buffers"] == 2 * block
    buffers = {
        trial.events[allocated]
        for category, (allocated, _) in zip(categories_of(trial), trial.lifetimes(), strict=True)
        if category == "all_gather_buffers"
    }
    # What is gathered are copies of the shards.
    assert buffers == {2 * size // ranks for size in (block, root) for ranks in (1, RANKS)}
    assert backward["reduce_scatter_buffers"] == 4 * block


def test_parameters_that_stay_gathered() -> None:
    trial, _ = trial_of("fsdp", ("reshard_after_forward", "false"))
    for end in ends_of(trial, "forward_end"):
        assert end["unsharded_parameters"] == 4 * padded(MODEL)


def test_gradients_that_are_not_reduced_yet_are_unsharded() -> None:
    trial, _ = trial_of("fsdp", grad_accum=2)
    ends = ends_of(trial, "forward_end")
    assert [end["unsharded_gradients"] for end in ends[:2]] == [0, 4 * NUMBER]


def test_the_buckets_of_ddp_hold_all_gradients_again() -> None:
    trial, _ = trial_of("ddp")
    for end in (*ends_of(trial, "forward_end"), *ends_of(trial, "step_end")):
        assert end["gradient_buckets"] == 4 * NUMBER
        assert end["parameters"] == 4 * NUMBER
        assert not end["kept"]
    assert [end["gradients"] for end in ends_of(trial, "step_end")] == [4 * NUMBER] * 3
    held_by = {
        share.path
        for share in compose(trial, fresh()).modules
        if share.categories.get("gradient_buckets")
    }
    assert held_by == {""}


def test_gradients_may_lie_in_the_buckets() -> None:
    trial, _ = trial_of("ddp", ("gradient_as_bucket_view", "true"))
    for end in ends_of(trial, "step_end"):
        assert end["gradients"] == 4 * NUMBER
        assert not end["gradient_buckets"]


def test_ranks_of_zero1_share_the_state_of_the_optimizer() -> None:
    states = []
    for rank in range(RANKS):
        trial, _ = trial_of("zero1", rank=rank)
        end = ends_of(trial, "step_end")[-1]
        assert end["gradient_buckets"] == end["gradients"] == end["parameters"] == 4 * NUMBER
        states.append(end["optimizer_state"])
    assert sum(states) == 8 * NUMBER
    assert max(states) < 8 * NUMBER / 4

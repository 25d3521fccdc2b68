"""One rank of a training on several GPUs: the trace on a CPU build of torch (`trace/distributed/`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from tests.simulation.corpus.case import Run
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.oracle import Oracle, why_there_is_none
from tests.simulation.parallel_runs import GPU, difference, run_of

from bsfind.devices.prediction_limits import check_sharding
from bsfind.errors import UntraceableError
from bsfind.parallel import Parallel
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.distributed.old_buckets import with_old_buckets
from bsfind.simulation.trace.distributed.sharding import few_shards
from bsfind.simulation.trace.program import Program, Replayed
from bsfind.simulation.trace.repetition import with_more_steps
from bsfind.simulation.trace.tracer import Tracer
from bsfind.simulation.trace.values import Values

needs_oracle = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_there_is_none() is not None, reason=str(why_there_is_none())),
]
"""`make corpus` compares more."""

RUNS = (
    run_of("decoder", "ddp", 2, "fp32"),
    run_of("decoder", "fsdp", 8, "mp-bf16"),
    run_of("decoder", "hsdp", 8, "amp-bf16"),
    run_of("decoder", "zero1", 2, "amp-bf16", rank=1),
    run_of("vit", "ddp", 8, "amp-bf16", gradient_as_bucket_view=True),
    run_of("cnn", "fsdp", 8, "amp-bf16"),
)
MORE_RUNS = (
    run_of("decoder", "fsdp", 7, "mp-bf16", rank=6),
    run_of("decoder", "fsdp", 64, "fp32", reshard_after_forward=4),
    run_of("decoder", "ddp", 8, "amp-bf16", workload={"grad_accum": 2}),
    run_of("vit", "fsdp", 2, "amp-bf16", prefetch=1),
    run_of("vit", "hsdp", 8, "mp-bf16"),
    run_of("vit", "zero1", 8, "fp32"),
    run_of("cnn", "ddp", 8, "fp32"),
    run_of("cnn", "zero1", 2, "amp-bf16"),
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle(gpu=GPU, cudnn=False) as asked:
        yield asked


def _with_marks(run: Run, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(run, id=str(run), marks=[*needs_oracle, *marks])


@pytest.mark.parametrize(
    "run",
    [
        *map(_with_marks, RUNS),
        *(_with_marks(run, pytest.mark.exhaustive) for run in MORE_RUNS),
    ],
)
def test_as_on_the_cuda_build(run: Run, oracle: Oracle) -> None:
    assert difference(run, oracle) is None


@pytest.mark.parametrize("run", [_with_marks(run_of("cnn", "ddp", 2, "fp32", sync_batchnorm=True))])
def test_synchronized_batch_norm_as_on_the_cuda_build(run: Run, oracle: Oracle) -> None:
    own = Values.set_count

    # The fake GPU computes nothing, so there no rank seems to have samples.
    def none(values: Values, mask: object, _count: int) -> None:
        own(values, mask, 0)  # type: ignore[arg-type]

    with mock.patch.object(Values, "set_count", none):
        assert difference(run, oracle) is None
    assert "events" in (difference(run, oracle) or "")


def opened(run: Run) -> Tracer:
    return Tracer(run.case.workload, run.precision, GPU_SPECS["a100"])


def replayed(program: Program) -> Replayed:
    allocator = CachingAllocator(DeviceMemory(1 << 40))
    return program.replay(allocator, program.load(allocator))


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.one_torch)])
def test_other_batch_sizes_and_more_steps_follow(strategy: str) -> None:
    with opened(run_of("vit", strategy, 8, "amp-bf16")) as tracer:
        for batch_size in (4, 6, 8):
            tracer.program(batch_size, 4)
        scaled, exact = tracer.program(12, 4), tracer.program(12, 4, exact=True)
        repeated, long = with_more_steps(exact, 6), tracer.program(12, 6, exact=True)
    assert scaled.traced_steps == 0
    assert scaled.trial_events == exact.trial_events
    assert scaled.streams == exact.streams
    assert repeated is not None
    assert replayed(repeated).peaks_by_step == replayed(long).peaks_by_step
    assert replayed(repeated).peak_reserved_bytes == replayed(long).peak_reserved_bytes


@pytest.mark.one_torch
def test_shards_are_built_block_by_block() -> None:
    """The whole model is never on one GPU."""
    with opened(run_of("decoder", "fsdp", 64, "fp32")) as tracer:
        held = most = 0
        sizes: list[int] = []
        for event in tracer.model_program().load_events:
            if event >= 0:
                sizes.append(event)
            held += event if event >= 0 else -sizes[-event - 1]
            most = max(most, held)
        whole = 4 * tracer.parameters
    assert held < 0.1 * whole
    assert most < 0.8 * whole


def test_old_buckets_may_stay_for_a_step() -> None:
    with opened(run_of("decoder", "ddp", 2, "fp32")) as tracer:
        program, late = tracer.program(4, 3), tracer.program_with_old_buckets(4, 3)
        gradients = 4 * tracer.parameters
    assert late is not None
    usual, longer = replayed(program).peaks_by_step, replayed(late).peaks_by_step
    assert usual[0] == longer[0]
    assert usual[1] < longer[1] <= usual[1] + 1.03 * gradients
    assert sorted(program.trial_events) == sorted(late.trial_events)


@pytest.mark.one_torch
def test_shards_have_no_old_buckets() -> None:
    with opened(run_of("vit", "fsdp", 2, "fp32")) as tracer:
        assert tracer.program_with_old_buckets(4, 3) is None


def test_a_bucket_stays_until_its_step_ends() -> None:
    program = Program(
        load_events=[10, 20],
        trial_events=[5, -1, 7, -3, -2, 8],
        operators=["a", "b", "c", "", "d", "", "", "e"],
        marks=[(1, "forward_begin"), (4, "step_end"), (6, "step_end")],
        optional={2: (3,)},
    )
    late = with_old_buckets(program, {0})
    assert late is not None
    assert late.trial_events == [5, 7, -3, -1, -2, 8]
    assert late.operators == ["a", "b", "c", "d", "", "", "", "e"]
    assert late.marks == [(1, "forward_begin"), (4, "step_end"), (6, "step_end")]
    assert late.optional == {1: (3,)}
    assert with_old_buckets(program, {5}) is None


def test_shards_need_a_torch_that_can_be_traced() -> None:
    sharded = Parallel(strategy="hsdp", world_size=4)
    with pytest.raises(
        UntraceableError, match=r"torch 2\.7\.1\+cpu cannot be traced.* 2\.9 or newer"
    ):
        check_sharding(sharded, "2.7.1+cpu")
    check_sharding(sharded, "2.13.0")
    check_sharding(Parallel(strategy="ddp", world_size=4), "2.6.0")


@pytest.mark.one_torch
def test_a_rank_leaves_no_process_group_behind() -> None:
    import torch.distributed as dist

    with opened(run_of("vit", "hsdp", 4, "fp32")):
        assert dist.get_world_size() == 4
    assert not dist.is_initialized()
    assert not Parallel().is_used


@pytest.mark.parametrize("shape", [(7, 3), (8, 3), (1, 3), (0, 3), (5, 8), (1024, 2)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 1024])
@pytest.mark.parametrize("dim", [0, 1])
def test_shards_are_those_of_torch(shape: tuple[int, int], ranks: int, dim: int) -> None:
    parameters = importlib.import_module("torch.distributed.fsdp._fully_shard._fsdp_param")
    tensor = torch.rand(shape)
    expected = parameters._chunk_with_empty(tensor, ranks, dim)
    with few_shards():
        shards = parameters._chunk_with_empty(tensor, ranks, dim)
    assert shards is not expected
    assert len(shards) == len(expected)
    for shard, other in zip(shards, expected, strict=True):
        assert shard.shape == other.shape
        assert shard.stride() == other.stride()
        assert torch.equal(shard, other)


def test_shards_of_other_ranks_are_not_made() -> None:
    """Views of 1024 ranks and more are thousands of operators for each parameter."""
    run = run_of("decoder", "fsdp", 1024, "fp32")
    with mock.patch.object(
        Dispatcher, "dispatch", autospec=True, side_effect=Dispatcher.dispatch
    ) as few:
        opened(run).close()
    run = run_of("decoder", "fsdp", 8, "fp32")
    with mock.patch.object(
        Dispatcher, "dispatch", autospec=True, side_effect=Dispatcher.dispatch
    ) as fewer:
        opened(run).close()
    assert few.call_count == pytest.approx(fewer.call_count, rel=0.2)

"""An answer with its evidence: the recommended size runs on, in a process of its own."""

from __future__ import annotations

import shlex

import pytest

from tests.gpu.gpu import MODELS, Gpu, Result
from tests.gpu.staged import UNPREDICTED

IMAGES = ("--input-shape", "3,32,32")
BLOCKS = ("well_behaved.py:Blocks", "--input-shape", "64,256")
X = ("--input-shape", "16", "--precision", "fp32")
FP32 = ("--precision", "fp32")
REMEDIES = ["checkpointing", "expandable-segments", "sgd"]


@pytest.fixture(scope="module")
def convnet(is_fake: bool, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole search of a convolutional network."""
    gpu = Gpu(is_fake=is_fake, folder=tmp_path_factory.mktemp("convnet"))
    return gpu.run("well_behaved.py:ConvNet", *IMAGES, *FP32)


@pytest.fixture(scope="module")
def blocks(is_fake: bool, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A whole search of repeated blocks, with rows for what saves memory."""
    gpu = Gpu(is_fake=is_fake, folder=tmp_path_factory.mktemp("blocks"))
    return gpu.run(*BLOCKS, *FP32, "--compare", ",".join(REMEDIES))


def test_the_recommended_size_is_confirmed_for_many_steps(convnet: Result) -> None:
    result = convnet.only
    confirmation = result["confirmation"]
    assert confirmation["steps"] == 20
    assert len(confirmation["peaks_by_step"]) == 20
    assert max(confirmation["peaks_by_step"]) == result["peak_allocated_bytes"]
    assert len(set(confirmation["peaks_by_step"][2:])) == 1  # flat
    assert confirmation["steady_alloc_retries"] == 0
    assert result["fragmentation_bytes"] == (
        result["peak_reserved_bytes"] - result["peak_allocated_bytes"]
    )
    # One of the two sizes below it ran too; the replay of what was recorded judges the other.
    near = result["neighbours"]
    below = {result["recommended_batch_size"] - 1, result["recommended_batch_size"] - 2}
    assert len(near["ran"]) == 1
    assert {*near["ran"], *near["estimated"]} == below
    assert (near["failed"], near["moved_from"], near["all_tried"]) == ([], None, True)


def test_as_many_steps_as_are_asked_for(gpu: Gpu) -> None:
    result = gpu.run(
        *BLOCKS, *FP32, "--confirm-steps", "5", "--max-batch-size", "6", variables=UNPREDICTED
    ).only
    assert result["confirmation"]["steps"] == 5


def test_the_recommended_size_trains_on(gpu: Gpu, blocks: Result) -> None:
    """What the whole is for: the job does not run out of memory later."""
    found = blocks.report["recommendation"]
    again = gpu.bsfind(*shlex.split(found["check"])[1:], "--steps", "50", "--json")
    assert again.code == 0, again.err
    assert again.only["trials"][0]["steps"] == 50


@pytest.mark.parametrize("model", ["Leaks", "LeaksSometimes"])
def test_a_leak_is_reported_instead_of_a_batch_size(gpu: Gpu, model: str) -> None:
    done = gpu.run(f"misbehaved.py:{model}", *X, variables=UNPREDICTED)
    assert done.code == 4, done.err
    assert "memory still grows after" in done.err
    assert "out of memory after about" in done.err
    result = done.only
    assert result["status"] == "error"
    assert result["recommended_batch_size"] is None
    each = (4 << 20) / (5 if model == "LeaksSometimes" else 1)
    assert 0.8 * each <= result["leak"]["bytes_per_step"] <= 1.2 * each
    trial = result["trials"][-1]
    assert trial["leak"] == result["leak"]
    # It fills what that trial left of the 1 GiB, after the steps that it took to tell it.
    steps = ((1 << 30) - trial["peak_allocated_bytes"]) / each
    assert 0.8 * steps <= result["leak"]["lasts_steps"] <= 1.3 * steps + 50


def test_a_cache_that_fills_up_is_counted_and_is_no_leak(gpu: Gpu) -> None:
    done = gpu.run(
        "misbehaved.py:GrowsAndStops", *X, "--max-batch-size", "64", variables=UNPREDICTED
    )
    assert done.code == 0, done.err
    assert done.only["leak"] is None
    assert done.only["peak_allocated_bytes"] > (1 + 2 + 3 + 4 + 5 + 6) << 20


def test_a_confirmation_that_fails_steps_down(gpu: Gpu) -> None:
    """Memory that a later step takes: what ran for three steps does not run for twenty."""
    done = gpu.run("misbehaved.py:GrowsLate", *X, "--headroom", "0", "--max-batch-size", "20000")
    assert done.code == 0, done.err
    result = done.only
    assert result["recommended_batch_size"] < result["max_batch_size"]
    assert result["confirmation"]["steps"] == 20
    assert "in a fresh process it ran out of memory after" in done.err


def test_where_throughput_saturates_is_always_told(blocks: Result) -> None:
    result = blocks.report["results"][0]
    trials = result["trials"] + result["timings"]
    timed = {t["batch_size"]: t["samples_per_s"] for t in trials if t["samples_per_s"]}
    assert min(timed) <= result["recommended_batch_size"] // 2
    assert result["saturation_batch_size"] in timed
    best = max(timed.values())
    assert timed[result["saturation_batch_size"]] >= 0.98 * best


def test_the_fastest_is_the_smallest_that_is_as_fast(gpu: Gpu) -> None:
    done = gpu.run(*BLOCKS, *FP32, "--objective", "fastest")
    assert done.code == 0, done.err
    result = done.only
    assert result["recommended_batch_size"] <= result["max_batch_size"]
    assert result["confirmation"]["batch_size"] == result["recommended_batch_size"]
    if done.report["recommendation"]["batch_size"] < result["max_batch_size"]:
        slower = [
            t["samples_per_s"]
            for t in result["timings"]
            if t["batch_size"] < result["recommended_batch_size"] and t["samples_per_s"]
        ]
        assert slower  # smaller ones were timed


def test_a_global_batch(gpu: Gpu) -> None:
    done = gpu.run(
        *BLOCKS, *FP32, "--global-batch", "1000", "--world-size", "2", variables=UNPREDICTED
    )
    assert done.code == 0, done.err
    recommendation, result = done.report["recommendation"], done.only
    parts = recommendation["global_batch"]
    micro, steps = parts["micro_batch_size"], parts["accumulation_steps"]
    assert micro * steps * 2 == parts["reached"] == parts["asked"] == 1000
    assert recommendation["batch_size"] == micro == result["confirmation"]["batch_size"]
    assert micro <= result["max_batch_size"]
    again = gpu.bsfind(*shlex.split(recommendation["check"])[1:], "--json")
    assert again.code == 0, again.err
    assert again.report["workload"]["grad_accum"] == steps
    # With gradients to hold between micro-batches, the peak is that of the confirmation.
    assert again.only["peak_allocated_bytes"] == result["peak_allocated_bytes"]


def test_what_each_remedy_buys(blocks: Result) -> None:
    done = blocks
    assert done.code == 0, done.err
    plain, *others = done.report["results"]
    assert plain["remedy"] is None
    assert [other["remedy"] for other in others] == REMEDIES
    assert done.report["recommendation"]["batch_size"] == plain["recommended_batch_size"]
    for other in others:
        assert other["status"] == "ok", other["message"]
        assert other["verified"]
    checkpointing = others[0]
    assert checkpointing["max_batch_size"] > 1.5 * plain["max_batch_size"]


def test_a_remedy_that_does_not_work_is_a_row_and_no_failure(gpu: Gpu) -> None:
    done = gpu.bsfind(
        *("run", f"{MODELS}/well_behaved.py:ConvNet", *IMAGES, *FP32),
        *("--memory-limit", "1GiB", "--max-batch-size", "6", "--compare", "checkpointing"),
        variables=UNPREDICTED,
    )
    assert done.code == 0, done.err
    assert "+ checkpointing" in done.out
    assert "found no repeated blocks" in done.out


def test_expandable_segments_are_tried_where_fragmentation_is_large(
    gpu: Gpu, convnet: Result
) -> None:
    done = convnet
    assert done.code == 0, done.err
    result = done.only
    if result["fragmentation_bytes"] > 0.08 * result["peak_reserved_bytes"]:
        bought = result["expandable_segments"]
        assert bought["batch_size"] > result["recommended_batch_size"]
        assert bought["peak_reserved_bytes"] <= done.report["device"]["budget_bytes"]
    on = gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, *FP32, "--max-batch-size", "8"),
        variables={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **UNPREDICTED},
    )
    assert on.only["expandable_segments"] is None

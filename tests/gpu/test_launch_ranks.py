"""`bsfind launch` on several ranks: two processes that train over NCCL, each on a GPU of its own."""

from __future__ import annotations

import pytest

from bsfind.units import GIB
from tests.gpu.gpu import Gpu
from tests.gpu.launcher import ONE, Ranks
from tests.gpu.processes import left_behind
from tests.gpu.reports import check_schema

pytestmark = pytest.mark.slow

FITS_WITHOUT_MORE = ("--min-batch-size", "1000", "--max-batch-size", "1000")
"""A batch size with which one rank takes some 570 MiB."""


@pytest.fixture
def ranks(fake_gpu: Gpu) -> Ranks:
    return Ranks(fake_gpu)


def test_every_rank_is_measured(ranks: Ranks) -> None:
    done = ranks("plain", *ONE)
    assert done.code == 0, done.err
    report, result = done.report, done.only
    check_schema(report)
    assert result["verified"]
    for trial in (*result["trials"], result["confirmation"]):
        assert [each["rank"] for each in trial["ranks"]] == [0, 1]
        assert [each["device_index"] for each in trial["ranks"]] == [0, 1]
        least, most = sorted(each["peak_allocated_bytes"] for each in trial["ranks"])
        assert least > 0.7 * most  # not the same: see the script
        # The loader of each rank has batches of this size.
        of_all = 2 * trial["batch_size"]
        assert trial["samples_per_s"] == pytest.approx(of_all / trial["step_time_s"])


def test_shards_of_a_model(ranks: Ranks) -> None:
    """`fully_shard`: each rank holds half of the parameters, gradients and moments."""
    done = ranks("fsdp", *ONE)
    assert done.code == 0, done.err
    assert done.only["verified"]
    (first, *_) = done.only["trials"]
    assert [each["rank"] for each in first["ranks"]] == [0, 1]
    parameters = 4 * (64 * 32_768 + 32_768 + 32_768 * 8 + 8)
    # Besides what cuBLAS takes, and buffers. DistributedDataParallel holds more than five times.
    assert 2 * parameters < first["resident_bytes"] < 4 * parameters


def test_the_rank_that_needs_most_limits_all(ranks: Ranks) -> None:
    done = ranks("unequal", *ONE)
    assert done.code == 0, done.err
    confirmation = done.only["confirmation"]
    assert confirmation["limiting_rank"] == 1
    least, most = confirmation["ranks"]
    more = most["peak_allocated_bytes"] - least["peak_allocated_bytes"]
    assert 60 << 20 < more < 140 << 20
    assert confirmation["peak_allocated_bytes"] == most["peak_allocated_bytes"]
    (warning,) = [w for w in done.report["warnings"] if w["code"] == "ranks_differ"]
    assert "rank 1 limits the batch size" in warning["message"]
    assumed = {made["what"]: made["value"] for made in done.report["launch"]["assumptions"]}
    assert "those of rank 1 on cuda:1" in assumed["ranks"]


def test_the_smaller_gpu_limits_all(ranks: Ranks) -> None:
    options = ("--min-batch-size", "500", "--headroom", "200MiB")
    done = ranks("plain", *options, memory="2GiB,1GiB")
    assert done.code == 0, done.err
    result = done.only
    assert result["smallest_failed_batch_size"] <= 1.02 * result["max_batch_size"]
    assert len(result["trials"]) <= 7
    failed = [trial for trial in result["trials"] if trial["status"] == "oom"]
    assert {trial["limiting_rank"] for trial in failed} == {1}
    assert all(trial["message"].startswith("rank 1: ") for trial in failed)
    confirmation = result["confirmation"]
    assert confirmation["limiting_rank"] == 1
    (_, small) = confirmation["ranks"]
    assert small["total_bytes"] == GIB
    budget = small["capacity_bytes"] - done.report["search"]["headroom_bytes"]
    assert 0.8 * budget < small["peak_reserved_bytes"] <= budget


def test_ranks_that_the_script_spawns_are_limited_on_their_own_gpu(ranks: Ranks) -> None:
    """No variable tells their number; rank 1 takes 100 MiB more than rank 0, which fits."""
    done = ranks("unequal", *FITS_WITHOUT_MORE, "--memory-limit", "600MiB", spawn=True)
    assert done.code == 1, done.err
    (trial, *_) = done.only["trials"]
    assert trial["limiting_rank"] == 1
    assert trial["message"].startswith("rank 1: CUDA out of memory")


def test_an_error_that_one_rank_catches_is_one(ranks: Ranks) -> None:
    done = ranks("catches", *FITS_WITHOUT_MORE, "--memory-limit", "300MiB")
    assert done.code == 1, done.err
    (trial,) = done.only["trials"]
    who = f"rank {trial['limiting_rank']}"
    assert trial["message"].startswith(f"{who} went on after an out-of-memory error: CUDA")


def test_the_first_rank_that_fails_ends_all(ranks: Ranks) -> None:
    done = ranks("mistake", *ONE)
    assert done.code == 4
    assert "ValueError: rank 1 does not find its data" in done.err
    assert left_behind(ranks.mark) == []


def test_ranks_on_two_machines(ranks: Ranks) -> None:
    done = ranks.on_two_machines("unequal", *ONE, "--listen", "127.0.0.1")
    assert done.code == 0, done.err
    (trial, *_) = done.only["trials"]
    assert [each["rank"] for each in trial["ranks"]] == [0, 1]
    assert [each["device_index"] for each in trial["ranks"]] == [0, 0]  # the only one of each
    assert len({each["device_uuid"] for each in trial["ranks"]}) == 2
    assert trial["limiting_rank"] == 1
    assert done.report["launch"]["listen"] == "127.0.0.1"
    assert left_behind(ranks.mark) == []


def test_ranks_that_are_not_heard(ranks: Ranks) -> None:
    done = ranks.on_two_machines("plain", *ONE)
    assert done.code == 2
    assert "the command trains on several machines" in done.err
    assert "`--listen HOST` hears those of others" in done.err
    assert left_behind(ranks.mark) == []

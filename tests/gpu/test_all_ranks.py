"""`bsfind run --parallel`: every rank on a GPU of its own (`--nproc-per-node`), or one rank of many."""

from __future__ import annotations

from typing import Any

import pytest

from bsfind.units import MIB
from tests.gpu.gpu import MODELS, Gpu, Result
from tests.gpu.processes import left_behind
from tests.gpu.reports import check_schema

pytestmark = pytest.mark.slow

NCCL = 64 * MIB
MODEL = (f"{MODELS}/blocks.py:Blocks", "--input-shape", "64", "--loss", "cross-entropy")
FEW = ("--precision", "fp32", "--no-progress", "--json")


def only(batch_size: int) -> tuple[str, ...]:
    return "--min-batch-size", str(batch_size), "--max-batch-size", str(batch_size)


def run(
    gpu: Gpu, *options: str, command: str = "run", memory: str = "1GiB", gpus: int = 2
) -> Result:
    fake: dict[str, Any] = {}
    if gpu.is_fake:
        fake = {"gpu": ",".join(["rtx3090"] * gpus), "memory": memory, "nccl_memory": "64MiB"}
    return gpu.bsfind(command, *MODEL, *options, **fake)


def test_every_rank_is_measured(fake_gpu: Gpu) -> None:
    done = run(fake_gpu, "--parallel", "ddp", "--nproc-per-node", "2", *FEW, *only(500))
    assert done.code == 0, done.err
    report, result = done.report, done.only
    check_schema(report)
    assert report["parallel"]["strategy"] == "ddp"
    assert (report["parallel"]["mode"], report["parallel"]["ranks_run"]) == ("measured", [0, 1])
    assert (report["device"]["nccl_bytes"], report["device"]["nccl_source"]) == (NCCL, "measured")
    assert result["verified"]
    assert result["global_batch_size"] == 2 * result["recommended_batch_size"]
    trial = result["confirmation"]
    assert [each["rank"] for each in trial["ranks"]] == [0, 1]
    assert trial["samples_per_s"] == pytest.approx(2 * trial["batch_size"] / trial["step_time_s"])
    assert report["model"]["class_name"] == "Blocks"
    assert left_behind(f"BSFIND_LOCK_DIR={fake_gpu.locks}") == []


def test_every_gpu_of_the_machine_and_every_group_of_ranks(fake_gpu: Gpu) -> None:
    """HSDP has two groups besides that of all ranks, and NCCL a communicator for each."""
    options = ("--parallel", "hsdp", "--nproc-per-node", "gpu", *FEW, *only(100))
    done = run(fake_gpu, *options, gpus=4)
    assert done.code == 0, done.err
    assert done.report["parallel"]["ranks_run"] == [0, 1, 2, 3]
    assert done.report["device"]["nccl_bytes"] == 3 * NCCL
    assert done.only["global_batch_size"] == 400


def test_a_rank_alone_takes_what_it_takes_among_others(fake_gpu: Gpu) -> None:
    """Measured on two GPUs, measured as one rank of two, and predicted: the same.

    With FSDP2, whose peaks do not depend on how long steps take, as DDP's do.
    """
    asked = ("--parallel", "fsdp", *FEW)
    all_ranks = run(fake_gpu, *asked, *only(500), "--nproc-per-node", "2")
    assert left_behind(f"BSFIND_LOCK_DIR={fake_gpu.locks}") == []
    one = ("--world-size", "2", "--nccl-memory", "64MiB", "--batch-size", "500")
    alone = run(fake_gpu, *asked, *one, command="check")
    report = alone.report
    assert (report["parallel"]["mode"], report["parallel"]["ranks_run"]) == ("one_rank", [0])
    assert (report["device"]["nccl_bytes"], report["device"]["nccl_source"]) == (NCCL, "given")
    assert alone.only["samples_per_s"] is None
    predicted = run(fake_gpu, *asked, *one, "--gpu", "rtx-3090", command="check")
    assert predicted.report["parallel"]["mode"] == "predicted"
    for name in ("peak_allocated_bytes", "peak_reserved_bytes"):
        expected = pytest.approx(all_ranks.only[name], rel=0.005)
        assert alone.only[name] == expected
        assert predicted.only[name] == expected


def test_the_smaller_gpu_limits_all_ranks(fake_gpu: Gpu) -> None:
    """Rank 0 has room for this size, rank 1 has not."""
    options = ("--parallel", "ddp", "--nproc-per-node", "2", *FEW, *only(15_000))
    done = run(fake_gpu, *options, memory="2GiB,1GiB")
    assert done.code == 1, done.err
    (trial,) = done.only["trials"]
    assert (trial["status"], trial["limiting_rank"]) == ("oom", 1)
    assert trial["message"].startswith("rank 1: CUDA out of memory")


def test_more_ranks_than_gpus(fake_gpu: Gpu) -> None:
    done = run(fake_gpu, "--parallel", "ddp", "--nproc-per-node", "3", *FEW)
    assert done.code == 3
    assert "`--nproc-per-node 3`: this machine has 2 GPUs" in done.err


def test_a_mistake_is_told_once(fake_gpu: Gpu) -> None:
    done = run(
        fake_gpu, "--parallel", "ddp", "--nproc-per-node", "gpu", "--loss", "mypkg:none", *FEW
    )
    assert done.code == 4
    assert done.err.count("error: ") == 1
    assert "mypkg" in done.err
    assert left_behind(f"BSFIND_LOCK_DIR={fake_gpu.locks}") == []

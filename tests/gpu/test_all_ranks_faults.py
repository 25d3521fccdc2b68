"""`bsfind run --nproc-per-node` when a rank runs out of memory, dies, hangs or differs, or bsfind ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.gpu import MODELS, Gpu, Result
from tests.gpu.processes import left_behind, wait_for

pytestmark = pytest.mark.faults

FAKE: dict[str, Any] = {"gpu": "rtx3090,rtx3090", "memory": "1GiB", "nccl_memory": "64MiB"}
ONE = ("--min-batch-size", "8", "--max-batch-size", "8")


def arguments(fault: str, *options: str) -> list[str]:
    return [
        *("run", f"{MODELS}/faulty_ranks.py:Net", "--model-arg", f"fault={fault}"),
        *("--input-shape", "64", "--loss", "cross-entropy", "--precision", "fp32"),
        *("--parallel", "ddp", "--nproc-per-node", "2", "--json", *ONE, *options),
    ]


def mark(gpu: Gpu) -> str:
    return f"BSFIND_LOCK_DIR={gpu.locks}"


def run(gpu: Gpu, fault: str, *options: str) -> Result:
    done = gpu.bsfind(*arguments(fault, *options), **FAKE)
    assert left_behind(mark(gpu)) == []
    return done


@pytest.mark.parametrize("where", ["load", "forward", "backward", "optimizer"])
def test_a_rank_out_of_memory(fake_gpu: Gpu, where: str) -> None:
    optimizer = ("--optimizer", f"{MODELS}/faulty_ranks.py:Hungry") if where == "optimizer" else ()
    done = run(fake_gpu, where, *optimizer)
    assert done.code == 1, done.err
    (trial,) = done.only["trials"]
    assert (trial["status"], trial["limiting_rank"]) == ("oom", 1)
    assert trial["message"].startswith("rank 1: CUDA out of memory")


def test_no_room_for_nccl(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind(*arguments(""), **{**FAKE, "nccl_memory": "2GiB"})
    assert done.code == 1, done.err
    (trial,) = done.only["trials"]
    assert trial["status"] == "oom"
    assert "NCCL error" in trial["message"]
    assert left_behind(mark(fake_gpu)) == []


def test_a_rank_that_is_killed(fake_gpu: Gpu) -> None:
    done = run(fake_gpu, "dies")
    assert done.code == 4, done.err
    assert "rank 1 was killed by SIGKILL" in done.err


def test_a_rank_that_hangs(fake_gpu: Gpu) -> None:
    done = run(fake_gpu, "hangs", "--trial-timeout", "25s")
    assert done.code == 5, done.err
    assert "has not made its steps after 25 s" in done.err
    (where,) = (part for part in done.err.split("`") if part.endswith(".log"))
    assert "faulty_ranks.py" in Path(where).read_text()  # the stack of the rank that hangs


def test_ranks_that_differ(fake_gpu: Gpu) -> None:
    done = run(fake_gpu, "differs", "--trial-timeout", "40s")
    assert done.code in (4, 5), done.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_nothing_behind(fake_gpu: Gpu, number: signal.Signals, code: int) -> None:
    process = fake_gpu.start(["-m", "bsfind", *arguments("hangs")], **FAKE)
    ranks = lambda: {*left_behind(mark(fake_gpu))} & {*left_behind("RANK=1")}  # noqa: E731
    wait_for(lambda: bool(ranks()), seconds=120)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    wait_for(lambda: left_behind(mark(fake_gpu)) == [])


def test_the_agent_is_killed(fake_gpu: Gpu) -> None:
    process = fake_gpu.start(["-m", "bsfind", *arguments("hangs")], **FAKE)
    ranks = lambda: {*left_behind(mark(fake_gpu))} & {*left_behind("RANK=1")}  # noqa: E731
    wait_for(lambda: bool(ranks()), seconds=120)
    (agent,) = {_parent(rank) for rank in ranks()}
    os.kill(agent, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    assert "SIGKILL" in err
    assert left_behind(mark(fake_gpu)) == []


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

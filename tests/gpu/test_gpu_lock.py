"""One bsfind at a time measures on a GPU; a second one waits for it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest

from bsfind.failures.gpu_lock import GpuLock
from tests.gpu.gpu import LIMIT, MODELS, Gpu
from tests.gpu.processes import left_behind, wait_for
from tests.gpu.staged import StagedSearch

pytestmark = pytest.mark.faults

FAKE_UUID = "fa4e0000-fa4e-4a4e-8a4e-fa4e00000000"
MODEL = f"{MODELS}/well_behaved.py:ConvNet"
CHECK = ("check", MODEL, "-b", "4", "--input-shape", "3,32,32", "--precision", "fp32", "--json")


@pytest.fixture
def other(fake_gpu: Gpu) -> Iterator[int]:
    """A process that has the lock of the fake GPU; its PID."""
    code = (
        "import sys, time; from pathlib import Path; from bsfind.failures.gpu_lock import GpuLock\n"
        f"lock = GpuLock({FAKE_UUID!r}, Path({str(fake_gpu.locks)!r}))\n"
        "assert lock.take(); print(flush=True); time.sleep(1000)"
    )
    process = fake_gpu.start(["-c", code])
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    yield process.pid
    process.kill()
    process.communicate()


def waiting(gpu: Gpu, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a bsfind that has to wait; return it with what it says about that."""
    process = gpu.start(["-m", "bsfind", *arguments])
    assert process.stderr is not None
    return process, process.stderr.readline() + process.stderr.readline()


def test_a_second_bsfind_waits_for_the_first_and_finds_the_whole_gpu(gpu: Gpu) -> None:
    shared = {"state_file": gpu.folder.with_name(f"{gpu.folder.name}-state")} if gpu.is_fake else {}
    with StagedSearch(gpu, "first trial", "-b", "1000", command="check", **shared) as first:
        first.reach()
        second = gpu.start(["-m", "bsfind", *CHECK], **shared)
        assert second.stderr is not None
        said = second.stderr.readline() + second.stderr.readline()
        assert said == (
            f"another bsfind (PID {first.process.pid}) is measuring on this GPU; waiting\n"
            "hint: `--no-lock` goes ahead at once\n"
        )
        assert second.poll() is None
        first.go_on()
        before = first.end()
    out, err = second.communicate(timeout=60)
    assert (before.code, second.returncode) == (0, 0), (before.err, err)
    assert f'"free_bytes": {before.report["device"]["free_bytes"]}' in out
    assert '"warnings": []' in out


def test_the_waiting_counts_against_the_time_budget(fake_gpu: Gpu, other: int) -> None:
    done = fake_gpu.run(
        "well_behaved.py:ConvNet", "--input-shape", "3,32,32", "--time-budget", "12s"
    )
    assert done.code == 5, done.err
    assert f"another bsfind (PID {other}) is measuring" in done.err
    assert "the time budget of 12 s is spent" in done.err
    assert done.report["status"] == "partial"
    assert done.report["results"] == []


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_interrupted_while_waiting(
    fake_gpu: Gpu, other: int, sent: signal.Signals, code: int
) -> None:
    process, said = waiting(fake_gpu, *CHECK)
    assert f"PID {other}" in said
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert '"status": "partial"' in out
    assert "Traceback" not in err
    # `other` is the only process left.
    wait_for(lambda: left_behind(f"BSFIND_LOCK_DIR={fake_gpu.locks}") == [other], seconds=10)


def test_a_killed_bsfind_leaves_no_lock_behind(fake_gpu: Gpu) -> None:
    with StagedSearch(fake_gpu, "first trial", "-b", "1000", command="check") as first:
        first.reach()
        first.process.kill()
        first.end()
    done = fake_gpu.bsfind(*CHECK)
    assert done.code == 0
    assert "waiting" not in done.err


def test_no_lock_goes_ahead_and_the_report_warns(fake_gpu: Gpu, other: int) -> None:
    done = fake_gpu.bsfind(*CHECK, "--no-lock")
    assert done.code == 0, done.err
    assert f"another bsfind (PID {other}) is measuring on this GPU too" in done.err
    assert [warning["code"] for warning in done.report["warnings"]] == ["no_lock"]
    from_variable = fake_gpu.bsfind(*CHECK, variables={"BSFIND_NO_LOCK": "1"})
    assert from_variable.report["warnings"] == done.report["warnings"]


def test_a_prediction_waits_for_nobody(fake_gpu: Gpu, other: int) -> None:
    done = fake_gpu.bsfind(*CHECK, "--gpu", "rtx-4090")
    assert done.code == 0, done.err
    assert "waiting" not in done.err


def test_where_there_can_be_no_lock_the_search_goes_on_and_says_so(gpu: Gpu) -> None:
    done = gpu.bsfind(
        *CHECK, "--memory-limit", LIMIT, variables={"BSFIND_LOCK_DIR": "/proc/no/such"}
    )
    assert done.code == 0, done.err
    assert [warning["code"] for warning in done.report["warnings"]] == ["no_lock"]
    assert "BSFIND_LOCK_DIR" in done.err


def test_another_gpu_is_free(fake_gpu: Gpu, other: int) -> None:
    done = fake_gpu.bsfind(*CHECK, "--device", "cuda:1", gpu="rtx3090,t4")
    assert done.code == 0, done.err
    assert "waiting" not in done.err
    assert not GpuLock(FAKE_UUID, fake_gpu.locks).take()  # still the other one's

"""`bsfind launch` when processes of the command are killed, hang or detach, and when it is ended itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.gpu.gpu import Gpu, Result
from tests.gpu.launcher import FEW, MEMORY, ONE, Launcher, Ranks
from tests.gpu.processes import left_behind, wait_for
from tests.gpu.reports import check_schema

pytestmark = pytest.mark.faults

IN_TRIAL = "BSFIND_TRIAL=1"


@pytest.fixture
def launch(gpu: Gpu) -> Launcher:
    return Launcher(gpu)


@pytest.fixture
def ranks(fake_gpu: Gpu) -> Ranks:
    return Ranks(fake_gpu)


def test_nothing_is_left_of_a_script_that_detaches(launch: Launcher) -> None:
    mark = "BSFIND_TEST_DETACHES=yes"
    done = launch.gpu.bsfind(
        *("launch", *FEW, "--", *launch.command("detaches")),
        variables=dict([mark.split("=")]),
        **(MEMORY if launch.gpu.is_fake else {}),
    )
    assert done.code == 0, done.err
    assert left_behind(mark) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_nothing_behind(
    launch: Launcher, number: signal.Signals, code: int
) -> None:
    mark = "BSFIND_TEST_SIGNAL=yes"
    process: subprocess.Popen[str] = launch.gpu.start(
        ["-m", "bsfind", "launch", "--json", "--", *launch.command("silent", "--workers", "1")],
        dict([mark.split("=")]),
        **(MEMORY if launch.gpu.is_fake else {}),
    )
    in_trial = lambda: {*left_behind(mark)} & {*left_behind(IN_TRIAL)}  # noqa: E731
    wait_for(lambda: len(in_trial()) >= 2, seconds=120)  # the supervisor and the script
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    wait_for(lambda: left_behind(mark) == [])


# ------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize("spawn", [False, True], ids=["torchrun", "spawn"])
def test_a_rank_that_is_killed(ranks: Ranks, spawn: bool) -> None:
    done = ranks("dies", *ONE, spawn=spawn)
    assert done.code == 4, done.err
    named = "process 1 terminated with signal SIGKILL" if spawn else "rank 1 was killed by SIGKILL"
    assert named in done.err
    assert left_behind(ranks.mark) == []


def test_a_rank_that_ends_while_the_other_waits(ranks: Ranks) -> None:
    done = ranks("ends", *ONE)
    assert done.code == 4, done.err
    assert "rank 1 ended after optimizer step 1, and other ranks did not" in done.err
    assert left_behind(ranks.mark) == []


def test_a_rank_that_hangs(ranks: Ranks) -> None:
    done = ranks("hangs", *ONE, "--trial-timeout", "30s")
    assert done.code == 5, done.err
    assert "the command has not made its steps after 30 s" in done.err
    (log,) = Path(done.report["launch"]["logs"]).iterdir()
    assert "train_ranks.py" in log.read_text()  # the stacks
    assert "in go_wrong" in log.read_text()
    assert left_behind(ranks.mark) == []


def interrupted(ranks: Ranks, seconds: float, number: signal.Signals, *, launcher: bool) -> Result:
    """End bsfind, or the launcher of the ranks, some time after this has begun."""
    kind = "hangs" if launcher else "plain"  # a launcher may have done its work by then
    command = ["-m", "bsfind", "launch", "--json", *FEW, "--", *ranks.command(kind)]
    process = ranks.gpu.start(command, **ranks.fake())
    wait_for(lambda: launchers(ranks) != [], seconds=120)
    time.sleep(seconds)
    os.kill(launchers(ranks)[0] if launcher else process.pid, number)
    out, err = process.communicate(timeout=120)
    wait_for(lambda: left_behind(ranks.mark) == [], seconds=10)
    return Result(process.returncode, out, err)


def launchers(ranks: Ranks) -> list[int]:
    """The processes of a test that run torchrun."""
    found = []
    for pid in left_behind(ranks.mark):
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if arguments[1:3] == [b"-m", b"torch.distributed.run"]:
                found.append(pid)
    return found


@pytest.mark.parametrize("seconds", [0.2, 2.0, 5.0])
def test_ctrl_c(ranks: Ranks, seconds: float) -> None:
    done = interrupted(ranks, seconds, signal.SIGINT, launcher=False)
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    check_schema(done.report)
    assert done.report["status"] == "partial"


@pytest.mark.parametrize("seconds", [0.2, 4.0])
def test_the_launcher_is_killed(ranks: Ranks, seconds: float) -> None:
    done = interrupted(ranks, seconds, signal.SIGKILL, launcher=True)
    assert done.code == 4, done.err
    assert "the command failed: it was killed by SIGKILL" in done.err

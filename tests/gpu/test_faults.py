"""What goes wrong in the user's code or in the machine is reported as what it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.exhaustive import one_in
from tests.gpu.gpu import LIMIT, MODELS, Gpu
from tests.gpu.processes import is_alive, left_behind, parent_of, wait_for
from tests.gpu.staged import StagedSearch

pytestmark = pytest.mark.faults

X = ("--input-shape", "16", "--precision", "fp32")


def test_prints_stay_off_stdout(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:Prints", *X, "--max-batch-size", "6")
    assert done.code == 0, done.err
    assert done.report["status"] == "complete"  # so stdout is JSON and nothing else
    for line in ("printed by the model", "written by the model", "written to descriptor 1"):
        assert line in done.err
        assert line not in done.out


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("Raises", ("ValueError: a bug of my own", "misbehaved.py")),
        ("RaisesInBackward", ("ArithmeticError: a bug in backward", "misbehaved.py")),
        ("ExitsPolitely", ("sys.exit('so long')",)),
        ("Exits", ("exited with status 3",)),
        ("Crashes", ("SIGSEGV",)),
        ("NoParameters", ("no parameter that requires a gradient", "--mode infer")),
        ("DetachedOutput", ("does not depend on any parameter",)),
        ("FailsToBuild", ("RuntimeError: cannot be built", "misbehaved.py")),
        ("Leaks", ("a leak or a cache that fills: 4.0 MiB more after every step",)),
        ("RaisesFromUnreadable", ("ValueError: a bug of my own", "misbehaved.py")),
        ("ReplacesSynchronize", ("the code has replaced `torch.cuda.", "which bsfind calls")),
        ("Forges", ("what the worker wrote is not its answer",)),
    ],
)
def test_failures_of_the_user_s_code(gpu: Gpu, model: str, named: tuple[str, ...]) -> None:
    done = gpu.run(f"misbehaved.py:{model}", *X)
    assert done.code == 4, done.err
    for text in named:
        assert text in done.err
    assert done.report["recommendation"] is None
    assert done.report["status"] == "failed"
    assert "bsfind/" not in done.err.replace(str(MODELS), "")  # our own frames are left out


@pytest.mark.parametrize("number", one_in(2, range(6)))
def test_exceptions_that_cannot_be_read(gpu: Gpu, number: int) -> None:
    variables = {"UNREADABLE": str(number)}
    done = gpu.run("misbehaved.py:RaisesUnreadable", *X, variables=variables)
    assert done.code == 4, done.err
    assert "misbehaved.py" in done.err


@pytest.mark.parametrize("model", ["ReplacesJson", "PrintsMuch", "StartsHelper"])
def test_what_does_not_stop_a_search(gpu: Gpu, model: str) -> None:
    variables = {"IS_OF_THIS_TEST": str(gpu.folder)}
    options = ("--max-batch-size", "6", "--trial-timeout", "60s")
    done = gpu.run(f"misbehaved.py:{model}", *X, *options, variables=variables)
    assert done.code == 0, done.err
    assert done.report["status"] == "complete"
    assert left_behind(f"IS_OF_THIS_TEST={gpu.folder}") == []


def test_a_spare_worker_that_was_killed_is_replaced(gpu: Gpu) -> None:
    with StagedSearch(gpu, "second trial", "--max-batch-size", "6") as search:
        worker = search.reach()
        in_use = {search.process.pid, worker, parent_of(worker)}
        others = set(left_behind(f"BSFIND_LOCK_DIR={gpu.locks}")) - in_use
        assert others
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        search.go_on()
        done = search.end()
    assert done.code == 0, done.err
    assert done.only["verified"]


def test_inference_of_a_model_without_parameters(gpu: Gpu) -> None:
    assert gpu.run("misbehaved.py:NoParameters", *X, "--mode", "infer").code == 0


def test_a_size_that_the_model_refuses_does_not_end_the_search(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:RaisesAbove20", "--input-shape", "16")
    assert done.code == 0, done.err
    for result in done.report["results"]:
        assert result["max_batch_size"] == 20
        assert result["refused_sizes"]["error"] == "ValueError: too many samples for me"
        assert result["confirmation"]["batch_size"] == result["recommended_batch_size"] == 20


@pytest.mark.parametrize(
    ("model", "accepted"), [("Groups", "multiples of 4"), ("Queue", "powers of two")]
)
def test_sizes_that_the_model_accepts(gpu: Gpu, model: str, accepted: str) -> None:
    options = ("--input-shape", "3,32,32", "--memory-limit", "1GiB", "--precision", "fp32")
    done = gpu.run(f"choosy.py:{model}", *options)
    assert done.code == 0, done.err
    assert done.only["refused_sizes"]["accepted"] == accepted
    assert done.only["recommended_batch_size"] % 4 == 0
    assert done.only["verified"]


def test_an_out_of_memory_error_that_was_raised_again_as_another_one(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:WrapsOutOfMemory", *X)
    assert done.code == 0, done.err
    assert any(trial["status"] == "oom" for trial in done.only["trials"])


def test_what_is_kept_but_does_not_grow_is_no_leak(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:KeepsLastOutput", *X)
    assert done.code == 0, done.err


def test_the_model_alone_does_not_fit(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:TooLarge", *X)
    assert done.code == 1, done.err
    assert done.only["status"] == "nothing_fits"
    assert "the model alone does not fit" in done.only["message"]


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("well_behaved.py:ConvNett", "did you mean `{models}/well_behaved.py:ConvNet`?"),
        ("well_behaved.py:not_a_model", "is of type `int`, not a model"),
        ("wellbehaved.py:ConvNet", "did you mean `{models}/well_behaved.py`?"),
        ("broken_import.py:Net", "No module named 'a_module_that_is_not_there'"),
    ],
)
def test_targets_that_are_not_there(gpu: Gpu, target: str, named: str) -> None:
    done = gpu.run(target, *X)
    assert done.code == 4
    assert named.format(models=MODELS) in done.err


def test_a_hang_at_the_first_batch_size(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:Hangs", *X, "--trial-timeout", "8s")
    assert done.code == 5, done.err
    assert done.report["status"] == "partial"
    assert [trial["status"] for trial in done.only["trials"]] == ["timeout"]
    assert done.report["recommendation"] is None


def test_a_hang_at_a_larger_batch_size_leaves_what_ran(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:HangsAbove20", *X, "--trial-timeout", "8s")
    assert done.code == 5, done.err
    assert done.report["status"] == "partial"
    assert done.only["max_batch_size"] == 5
    assert done.only["is_maximum_proven"] is False
    assert done.report["recommendation"]["batch_size"] == 5
    assert "given up" in done.err


def test_the_time_budget(gpu: Gpu) -> None:
    done = gpu.run("misbehaved.py:HangsAbove20", *X, "--time-budget", "25s")
    assert done.code == 5, done.err
    assert "time budget" in done.err
    assert done.report["status"] == "partial"
    assert done.only["max_batch_size"] == 5


def start_and_announce(gpu: Gpu, model: str, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    announcement = gpu.folder / "announcement"
    process = gpu.start(
        [
            "-m",
            "bsfind",
            "run",
            f"{MODELS}/misbehaved.py:{model}",
            *X,
            "--json",
            "--memory-limit",
            LIMIT,
            *arguments,
        ],
        {"ANNOUNCE": str(announcement)},
    )
    wait_for(lambda: announcement.exists() and announcement.read_text() != "")
    return process, int(announcement.read_text())


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_interrupted(gpu: Gpu, sent: signal.Signals, code: int) -> None:
    process, worker = start_and_announce(gpu, "Announces", "--export", "report.json")
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert '"status": "partial"' in out
    assert '"message": "interrupted"' in out or '"message": "terminated (SIGTERM)"' in out
    assert Path(gpu.folder, "report.json").read_text() == out
    found = json.loads(out)["results"][0]
    assert found["max_batch_size"] == max(
        trial["batch_size"] for trial in found["trials"] if trial["status"] == "ok"
    )
    wait_for(lambda: not is_alive(worker))


def test_processes_of_the_user_s_code_end_too(gpu: Gpu) -> None:
    process, child = start_and_announce(gpu, "StartsProcess")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    wait_for(lambda: not is_alive(child))


def test_no_worker_outlives_a_bsfind_that_was_killed(gpu: Gpu) -> None:
    process, worker = start_and_announce(gpu, "Announces")
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not is_alive(worker))


def test_a_worker_that_was_killed(gpu: Gpu) -> None:
    process, worker = start_and_announce(gpu, "Announces")
    os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "SIGKILL" in err
    found = json.loads(out)["results"][0]
    assert found["max_batch_size"] == max(
        trial["batch_size"] for trial in found["trials"] if trial["status"] == "ok"
    )

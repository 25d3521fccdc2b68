"""`bsfind launch`: the batch size of a training script, by what its own processes do."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bsfind.report.json import schema
from bsfind.units import GIB
from tests.gpu.gpu import Gpu, Result
from tests.gpu.processes import left_behind, wait_for

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parent / "commands" / "train.py")
MEMORY = {"memory": "1GiB"}
FEW = ("--max-batch-size", "6")


class Launcher:
    """Runs `bsfind launch` on the script."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def command(self, kind: str, *more: str) -> list[str]:
        return [self.gpu.python, SCRIPT, "--kind", kind, "--batch-size", "{batch_size}", *more]

    def __call__(self, kind: str, *more: str, options: tuple[str, ...] = (), **fake: Any) -> Result:
        command = self.command(kind, *more)
        fake = {**MEMORY, **fake} if self.gpu.is_fake else fake
        return self.gpu.bsfind(
            *("launch", "--json", "--memory-limit", "600MiB", *options, "--"), *command, **fake
        )

    def trains(self, batch_size: int, limit_bytes: int) -> bool:
        """Whether the script makes its steps with a batch size, without bsfind."""
        code = (
            "import sys, runpy, torch\n"
            f"sys.argv = ['train.py', '--batch-size', '{batch_size}', '--epochs', '1']\n"
            "total = torch.cuda.get_device_properties(0).total_memory\n"
            f"torch.cuda.set_per_process_memory_fraction({limit_bytes} / total)\n"
            f"runpy.run_path({SCRIPT!r})\n"
        )
        done = self.gpu.python_code(code, **(MEMORY if self.gpu.is_fake else {}))
        assert done.code == 0 or "OutOfMemoryError" in done.err, done.err
        return done.code == 0


@pytest.fixture
def launch(gpu: Gpu) -> Launcher:
    return Launcher(gpu)


def test_a_script_with_a_loader_and_workers(launch: Launcher) -> None:
    done = launch("plain", "--workers", "2")
    assert done.code == 0, done.err
    report, result = done.report, done.only
    Draft202012Validator(schema()).validate(report)
    assert report["status"] == "complete"
    assert report["workload"] is None
    assert report["launch"]["command"] == launch.command("plain", "--workers", "2")
    assert report["launch"]["variables"]["WANDB_MODE"] == "disabled"
    assert (result["precision"], result["variant"]) == ("launched", "command")
    largest, failed = result["max_batch_size"], result["smallest_failed_batch_size"]
    assert result["is_maximum_proven"]
    assert failed <= 1.02 * largest
    assert len(result["trials"]) <= 7
    assert result["verified"]
    assert result["confirmation"]["peak_reserved_bytes"] <= report["device"]["budget_bytes"]
    assert result["samples_per_s"] > 0
    capacity = report["device"]["capacity_bytes"]
    assert launch.trains(largest, capacity)
    assert not launch.trains(failed, capacity)
    logs = sorted(Path(report["launch"]["logs"]).iterdir())
    assert len(logs) >= len(result["trials"])


def test_an_error_that_the_script_catches_is_one(launch: Launcher) -> None:
    done = launch("catches")
    assert done.code == 0, done.err
    failed = [trial for trial in done.only["trials"] if trial["status"] == "oom"]
    assert failed
    assert all("went on after an out-of-memory error" in trial["message"] for trial in failed)
    assert done.only["smallest_failed_batch_size"] <= 1.02 * done.only["max_batch_size"]


def test_a_second_optimizer_that_steps_less_often(launch: Launcher) -> None:
    """The generator steps after five steps of the critic: a trial of three would not have its memory."""
    done = launch("gan", options=FEW)
    assert done.code == 0, done.err
    (trial, *_) = done.only["trials"]
    assert trial["steps"] >= 5
    assert trial["samples_per_s"] is None
    weights = trial["resident_bytes"]
    assert weights > 2 * 3 * 4 * 32_768 * 9  # the moments of both optimizers are there


def test_accumulated_gradients(launch: Launcher) -> None:
    done = launch("accumulates", options=FEW)
    assert done.code == 0, done.err
    assert all(trial["steps"] >= 3 for trial in done.only["trials"])
    assert done.only["samples_per_s"] is None  # of how many batches, only the script knows
    assert done.only["step_time_s"] > 0


def test_steps_without_an_optimizer_of_torch(launch: Launcher) -> None:
    done = launch("own-optimizer", options=(*FEW, "--steps", "4"))
    assert done.code == 0, done.err
    assert {trial["steps"] for trial in done.only["trials"]} == {4}
    assert done.only["confirmation"]["steps"] == 20


def test_variants_and_variables(launch: Launcher) -> None:
    command = f'exec {launch.gpu.python} {SCRIPT} --batch-size "$BS" {{variant}}'
    done = launch.gpu.bsfind(
        *("launch", "--json", *FEW, "--set-env", "BS={batch_size}"),
        *("--variant", "small=--hidden 64", "--variant", "large=", "--", "sh", "-c", command),
        **(MEMORY if launch.gpu.is_fake else {}),
    )
    assert done.code == 0, done.err
    small, large = done.report["results"]
    assert (small["variant"], large["variant"]) == ("small", "large")
    assert small["peak_allocated_bytes"] < large["peak_allocated_bytes"]
    assert done.report["recommendation"]["check"].startswith("BS=6 ")


def test_a_file_of_settings(launch: Launcher) -> None:
    Path(launch.gpu.folder, "train.args").write_text("--batch-size\n{batch_size}\n")
    command = f"exec {launch.gpu.python} {SCRIPT} $(cat train.args)"
    done = launch.gpu.bsfind(
        *("launch", "--json", *FEW, "--substitute", "train.args", "--", "sh", "-c", command),
        **(MEMORY if launch.gpu.is_fake else {}),
    )
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == 6
    assert done.report["recommendation"]["check"] is None


def test_a_data_set_that_is_shorter_than_a_batch(launch: Launcher) -> None:
    done = launch("plain", "--samples", "30", "--drop-last")
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == 30
    assert any(warning["code"] == "short_batch" for warning in done.report["warnings"])
    nothing = launch("plain", "--samples", "3", "--drop-last", options=("--min-batch-size", "5"))
    assert nothing.code == 4
    assert "the data set has 3 samples, the batch size is 5: no step" in nothing.err


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("crashes", "the command failed: ValueError: a batch of 5 is no good"),
        ("mistake", "the command failed: AttributeError: module 'torch' has no attribute"),
        ("exits", "the command failed: it exited with status 3"),
        ("dies", "the command failed: it was killed by SIGKILL"),
        ("host", "the command does not use CUDA"),
        ("ignores", "it does not use the batch size that it is given"),
    ],
)
def test_a_script_that_fails(launch: Launcher, kind: str, said: str) -> None:
    done = launch(kind)
    assert done.code == 4, done.err
    assert said in done.err
    assert "bsfind/launch/ranks.py" not in done.err
    assert done.report["recommendation"] is None


def test_a_launcher_is_no_rank(launch: Launcher) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    python, *script = launch.command("plain")
    fake = MEMORY if launch.gpu.is_fake else {}
    done = launch.gpu.bsfind(
        "launch", "--json", *FEW, "--", python, *torchrun, "1", *script, **fake
    )
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == 6
    assert done.only["confirmation"]["ranks"] == []


def test_a_command_that_is_no_python(launch: Launcher) -> None:
    done = launch.gpu.bsfind("launch", "--", "true", "{batch_size}")
    assert done.code == 4
    assert "no process of it has used CUDA" in done.err


def test_a_script_that_never_steps(launch: Launcher) -> None:
    done = launch("silent", options=("--trial-timeout", "30s"))
    assert done.code == 5, done.err
    assert "the command has not made its steps after 30 s" in done.err
    (log,) = Path(done.report["launch"]["logs"]).iterdir()
    assert "train.py" in log.read_text()  # the stacks


@pytest.mark.faults
def test_nothing_is_left_of_a_script_that_detaches(launch: Launcher) -> None:
    mark = "BSFIND_TEST_DETACHES=yes"
    done = launch.gpu.bsfind(
        *("launch", *FEW, "--", *launch.command("detaches")),
        variables=dict([mark.split("=")]),
        **(MEMORY if launch.gpu.is_fake else {}),
    )
    assert done.code == 0, done.err
    assert left_behind(mark) == []


@pytest.mark.faults
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
    in_trial = lambda: {*left_behind(mark)} & {*left_behind("BSFIND_TRIAL=1")}  # noqa: E731
    wait_for(lambda: len(in_trial()) >= 2, seconds=120)  # the supervisor and the script
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, (out, err)
    assert "Traceback" not in err
    wait_for(lambda: left_behind(mark) == [])


# ------------------------------------------------------------------------------- several ranks


def ranks(launch: Launcher, kind: str, *options: str, memory: str = "1GiB,1GiB") -> Result:
    """Run a script in two processes, each on a GPU of its own."""
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return launch.gpu.bsfind(
        *("launch", "--json", *options, "--", launch.gpu.python, *run),
        *(SCRIPT, "--kind", kind, "--batch-size", "{batch_size}"),
        gpu="rtx3090,rtx3090",
        memory=memory,
    )


@pytest.fixture
def two_gpus(fake_gpu: Gpu) -> Launcher:
    return Launcher(fake_gpu)


def test_every_rank_is_measured(two_gpus: Launcher) -> None:
    done = ranks(two_gpus, "ddp", "--memory-limit", "600MiB")
    assert done.code == 0, done.err
    report, result = done.report, done.only
    Draft202012Validator(schema()).validate(report)
    assert result["verified"]
    assert result["smallest_failed_batch_size"] <= 1.02 * result["max_batch_size"]
    assert len(result["trials"]) <= 7
    for trial in (*result["trials"], result["confirmation"]):
        if trial["status"] == "ok":
            assert [each["rank"] for each in trial["ranks"]] == [0, 1]
            assert [each["device_index"] for each in trial["ranks"]] == [0, 1]
            assert len({each["peak_reserved_bytes"] for each in trial["ranks"]}) == 1
            # The loader of each rank has batches of this size.
            assert trial["samples_per_s"] == pytest.approx(
                2 * trial["batch_size"] / trial["step_time_s"]
            )
        else:
            assert trial["limiting_rank"] in (0, 1)
            assert trial["message"].startswith(f"rank {trial['limiting_rank']}: ")
    assert "ranks_differ" not in {warning["code"] for warning in report["warnings"]}


def test_the_rank_that_needs_most_limits_all(two_gpus: Launcher) -> None:
    done = ranks(two_gpus, "ddp-unequal", *FEW)
    assert done.code == 0, done.err
    confirmation = done.only["confirmation"]
    assert confirmation["limiting_rank"] == 1
    least, most = confirmation["ranks"]
    assert most["peak_allocated_bytes"] - least["peak_allocated_bytes"] == 100 << 20
    assert confirmation["peak_allocated_bytes"] == most["peak_allocated_bytes"]
    (warning,) = [w for w in done.report["warnings"] if w["code"] == "ranks_differ"]
    assert "rank 1 limits the batch size" in warning["message"]
    assumed = {made["what"]: made["value"] for made in done.report["launch"]["assumptions"]}
    assert "those of rank 1 on cuda:1" in assumed["ranks"]


def test_the_smaller_gpu_limits_all(two_gpus: Launcher) -> None:
    done = ranks(two_gpus, "ddp", "--headroom", "200MiB", memory="2GiB,1GiB")
    assert done.code == 0, done.err
    result = done.only
    assert {t["limiting_rank"] for t in result["trials"] if t["status"] == "oom"} == {1}
    confirmation = result["confirmation"]
    assert confirmation["limiting_rank"] == 1
    (_, small) = confirmation["ranks"]
    assert small["total_bytes"] == GIB
    headroom = done.report["search"]["headroom_bytes"]
    assert 0.3 * GIB < small["peak_reserved_bytes"] <= GIB - headroom


def test_the_first_rank_that_fails_ends_all(two_gpus: Launcher) -> None:
    done = ranks(two_gpus, "ddp-mistake")
    assert done.code == 4
    assert "ValueError: rank 1 does not find its data" in done.err
    assert left_behind("BSFIND_TRIAL=1") == []

"""`bsfind launch`: the batch size of a training script, by what its own processes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exhaustive import exhaustive
from tests.gpu.gpu import Gpu, Result
from tests.gpu.launcher import MEMORY, SCRIPT, SIX, Launcher
from tests.gpu.reports import check_schema

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(gpu: Gpu) -> Launcher:
    return Launcher(gpu)


@pytest.fixture(scope="module")
def measured(is_fake: bool, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The search of a script with a loader and workers."""
    folder = tmp_path_factory.mktemp("measured")
    return Launcher(Gpu(is_fake=is_fake, folder=folder))("plain", "--workers", "2")


def test_a_script_with_a_loader_and_workers(launch: Launcher, measured: Result) -> None:
    done = measured
    assert done.code == 0, done.err
    report, result = done.report, done.only
    check_schema(report)
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
    done = launch("gan", options=SIX)
    assert done.code == 0, done.err
    (trial, *_) = done.only["trials"]
    assert trial["steps"] >= 5
    assert trial["samples_per_s"] is None
    weights = trial["resident_bytes"]
    assert weights > 2 * 3 * 4 * 32_768 * 9  # the moments of both optimizers are there


def test_accumulated_gradients(launch: Launcher) -> None:
    done = launch("accumulates", options=SIX)
    assert done.code == 0, done.err
    assert all(trial["steps"] >= 3 for trial in done.only["trials"])
    assert done.only["samples_per_s"] is None  # of how many batches, only the script knows
    assert done.only["step_time_s"] > 0


def test_steps_without_an_optimizer_of_torch(launch: Launcher) -> None:
    done = launch("own-optimizer", options=(*SIX, "--steps", "4"))
    assert done.code == 0, done.err
    assert {trial["steps"] for trial in done.only["trials"]} == {4}
    assert done.only["confirmation"]["steps"] == 20


def test_variants_and_variables(launch: Launcher) -> None:
    command = f'exec {launch.gpu.python} {SCRIPT} --batch-size "$BS" {{variant}}'
    done = launch.gpu.bsfind(
        *("launch", "--json", *SIX, "--set-env", "BS={batch_size}"),
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
        *("launch", "--json", *SIX, "--substitute", "train.args", "--", "sh", "-c", command),
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
    ("kind", "options", "said"),
    [
        ("crashes", (), "the command failed: ValueError: a batch of 5 is no good"),
        ("mistake", (), "the command failed: AttributeError: module 'torch' has no attribute"),
        ("exits", SIX, "the command failed: it exited with status 3"),
        ("dies", (), "the command failed: it was killed by SIGKILL"),
        ("host", (), "the command does not use CUDA"),
        ("ignores", (), "it does not use the batch size that it is given"),
    ],
)
def test_a_script_that_fails(
    launch: Launcher, kind: str, options: tuple[str, ...], said: str
) -> None:
    done = launch(kind, options=options)
    assert done.code == 4, done.err
    assert said in done.err
    assert "bsfind/launch/ranks.py" not in done.err
    assert done.report["recommendation"] is None


def test_a_launcher_is_no_rank(launch: Launcher) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    python, *script = launch.command("plain")
    fake = MEMORY if launch.gpu.is_fake else {}
    done = launch.gpu.bsfind(
        "launch", "--json", *SIX, "--", python, *torchrun, "1", *script, **fake
    )
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == 6
    assert done.only["confirmation"]["ranks"] == []


def test_a_command_that_is_no_python(launch: Launcher) -> None:
    done = launch.gpu.bsfind("launch", "--", "true", "{batch_size}")
    assert done.code == 4
    assert "no process of it has used CUDA" in done.err


def test_a_script_that_never_steps(launch: Launcher) -> None:
    done = launch("silent", options=("--trial-timeout", "15s"))
    assert done.code == 5, done.err
    assert "the command has not made its steps after 15 s" in done.err
    (log,) = Path(done.report["launch"]["logs"]).iterdir()
    assert "train.py" in log.read_text()  # the stacks


@pytest.mark.parametrize("kind", ["plain", exhaustive("gan")])
def test_a_prediction_has_the_figures_of_a_measurement(
    fake_gpu: Gpu, kind: str, request: pytest.FixtureRequest
) -> None:
    launcher = Launcher(fake_gpu)
    # Workers make the batches, and take no memory of the GPU.
    measured = request.getfixturevalue("measured") if kind == "plain" else launcher(kind)
    predicted = launcher(kind, options=("--gpu", "rtx3090"))
    assert (measured.code, predicted.code) == (0, 0), measured.err + predicted.err
    assert predicted.report["device"]["kind"] == "simulated"
    names = ("max_batch_size", "smallest_failed_batch_size", "recommended_batch_size")
    peaks = ("peak_allocated_bytes", "peak_reserved_bytes")
    for name in (*names, *peaks):
        assert predicted.only[name] == measured.only[name], name
    assert not predicted.only["verified"]

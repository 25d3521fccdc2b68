"""`bsfind launch --gpu`: the user's own script on a GPU that is not there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.cli.processes import ROOT, bsfind

from bsfind.report.json import schema

SCRIPT = Path(__file__).parent / "commands" / "train.py"
OTHER_SCRIPT = ROOT / "tests" / "gpu" / "commands" / "train.py"
PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
FEW = ("--max-batch-size", "5", "--confirm-steps", "4")
ONE_TRIAL = ("--min-batch-size", "5", "--max-batch-size", "5")  # where that fails


def launch(
    folder: Path, kind: str, *options: str, script: Path = SCRIPT, gpu: str = "2GiB"
) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, script, "--kind", kind, "--batch-size", "{batch_size}")
    return bsfind("launch", "--gpu", gpu, "--json", *options, "--", *command, folder=folder)


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return validated(done.stdout)


def validated(text: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(text)
    Draft202012Validator(schema()).validate(report)
    return report


def printed(report: dict[str, Any]) -> str:
    return "\n".join(file.read_text() for file in sorted(Path(report["launch"]["logs"]).iterdir()))


def test_a_script_with_workers_amp_validation_and_checkpoints(tmp_path: Path) -> None:
    done = launch(tmp_path, "plain", "--memory-limit", "100MiB")
    report = report_of(done)
    (result,) = report["results"]
    assert report["device"]["kind"] == "simulated"
    assert result["smallest_failed_batch_size"] <= 1.02 * result["max_batch_size"]
    assert len(result["trials"]) <= 7
    assert not result["verified"]
    assert result["samples_per_s"] is None
    assert report["prediction"]["accuracy"] is None
    assert report["prediction"]["convolution_workspaces"] == "fitted trees of cuDNN 9.20"
    assumed = {made["what"]: made["value"] for made in report["launch"]["assumptions"]}
    assert "experimental" in assumed["prediction"]
    assert "loss 1.000 1.0 norm 1.00" in printed(report)
    assert shlex.split(report["reproduce"])[:2] == ["bsfind", "launch"]
    assert "OutOfMemoryError: CUDA out of memory" in printed(report)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["device", "thread", "stream"])
def test_what_scripts_do_with_a_gpu(kind: str, tmp_path: Path) -> None:
    exported = tmp_path / "report.json"
    options = (*FEW, "--context-memory", "200MiB", "--export", str(exported))
    command = (sys.executable, SCRIPT, "--kind", kind, "--batch-size", "{batch_size}")
    done = bsfind("launch", "--gpu", "2GiB", *options, "--", *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prediction (experimental" in done.stdout
    assert "Predicted, not run" in done.stdout
    assert "samples/s" not in done.stdout
    report = validated(exported.read_text())
    (result,) = report["results"]
    assert result["max_batch_size"] == 5
    assert report["prediction"]["convolution_workspaces"] is None
    weights = 4 * (512 * 2048 * 2 + 2048 + 512)
    workspaces = 20 << 20  # at most, of cuBLAS
    resident = result["trials"][-1]["resident_bytes"]
    assert 4 * weights < resident < 4 * weights + workspaces  # gradients and moments besides


@pytest.mark.slow
def test_two_optimizers(tmp_path: Path) -> None:
    report = report_of(launch(tmp_path, "gan", *FEW, script=OTHER_SCRIPT))
    (trial, *_) = report["results"][0]["trials"]
    assert trial["steps"] >= 5
    assert trial["resident_bytes"] > 2 * 3 * 4 * 32_768 * 9


@pytest.mark.slow
def test_an_error_of_memory_that_the_script_catches(tmp_path: Path) -> None:
    # About 1,100 fit: one size that does, one that does not, and the confirmation.
    sizes = ("--min-batch-size", "1000", "--max-batch-size", "1500", "--tolerance", "50%")
    limit = ("--memory-limit", "600MiB", *sizes)
    (result,) = report_of(launch(tmp_path, "catches", *limit, script=OTHER_SCRIPT))["results"]
    failed = [trial for trial in result["trials"] if trial["status"] == "oom"]
    assert failed
    assert all("went on after an out-of-memory error" in trial["message"] for trial in failed)


@pytest.mark.slow
def test_a_compiled_step_is_predicted_as_it_is_without(tmp_path: Path) -> None:
    report = report_of(launch(tmp_path, "compiled", *FEW))
    (warning,) = (each for each in report["warnings"] if each["code"] == "uncompiled")
    assert "train.py:" in warning["message"]


@pytest.mark.slow
def test_a_refusal_that_the_script_catches_is_told(tmp_path: Path) -> None:
    report = report_of(launch(tmp_path, "catches", *FEW))
    (warning,) = (each for each in report["warnings"] if each["code"] == "untraceable")
    line = 1 + SCRIPT.read_text().splitlines().index("                y[y > 0].sum()")
    assert f"train.py:{line} cannot be predicted" in warning["message"]


@pytest.mark.parametrize(
    ("kind", "line", "says"),
    [
        ("selects", "y = y[y[:, 0] > 0]", "cannot be predicted: the shape of its result"),
        pytest.param(
            *("loops", "while loss.item() > 0.5:", "loops until a value has changed"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("checks", 'if kind == "checks" and loss.item() < 5:', "it is taken as 1.0"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_predicted_names_the_line(
    kind: str, line: str, says: str, tmp_path: Path
) -> None:
    done = launch(tmp_path, kind, *ONE_TRIAL)
    assert done.returncode == 4
    number = 1 + [each.strip() for each in SCRIPT.read_text().splitlines()].index(line)
    assert f"train.py:{number}" in done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("group", ()),
        pytest.param("device", ("--set-env", "WORLD_SIZE=2"), marks=pytest.mark.slow),
    ],
)
def test_several_ranks_are_refused(kind: str, options: tuple[str, ...], tmp_path: Path) -> None:
    done = launch(tmp_path, kind, *options)
    assert done.returncode == 2
    assert "predicts a training in one process" in done.stderr
    assert "start the script itself" in done.stderr


@pytest.mark.slow
def test_a_script_that_trains_on_the_cpu(tmp_path: Path) -> None:
    done = launch(tmp_path, "host", script=OTHER_SCRIPT)
    assert done.returncode == 4
    assert "does not use CUDA: it has made 3 optimizer steps" in done.stderr


@pytest.mark.slow
def test_the_command_of_the_page(tmp_path: Path) -> None:
    (command,) = re.findall(r"^bsfind (launch --gpu .*)$", PAGE, re.MULTILINE)
    files = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    words = shlex.split(command.replace(" python ", f" {sys.executable} "))
    (script,) = set(words) & files.keys()
    (tmp_path / script).write_text(files[script], encoding="utf-8")
    done = bsfind(words[0], "--json", *FEW, *words[1:], folder=tmp_path)
    assert report_of(done)["recommendation"]["batch_size"] == 5

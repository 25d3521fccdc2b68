"""Predictions of models that leave processes behind, write to the pipe, or cannot say what went wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.processes import MODELS, bsfind
from tests.gpu.processes import left_behind

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]


def check(
    model: str, *more: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    arguments = ("check", model, "-b", "4", "--input-shape", "16", "--precision", "fp32", "-q")
    return bsfind(*arguments, "--gpu", "rtx-4090", *more, folder=folder, **environment)


@pytest.mark.parametrize(
    ("model", "said", "variables"),
    [
        *(("RaisesUnreadable", "misbehaved.py", {"UNREADABLE": str(n)}) for n in range(6)),
        ("RaisesFromUnreadable", "a bug of my own", {}),
        ("RaisesMuch", "ValueError: much", {}),
        ("ReplacesBackward", "Tensor.backward", {}),
        ("Forges", "what the worker wrote is not its answer", {}),
    ],
)
def test_the_model_failed(model: str, said: str, variables: dict[str, str], tmp_path: Path) -> None:
    done = check(f"{MODELS}/misbehaved.py:{model}", folder=tmp_path, **variables)
    assert done.returncode == 4, done.stderr
    assert said in done.stderr
    assert len(done.stderr) < 30_000


@pytest.mark.parametrize("model", ["ReplacesJson", "Forks", "PrintsMuch"])
def test_the_model_runs_all_the_same(model: str, tmp_path: Path) -> None:
    target = f"{MODELS}/misbehaved.py:{model}"
    done = check(target, "--trial-timeout", "60s", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
    assert len(done.stderr) < 500_000


def test_helpers_are_ended(tmp_path: Path) -> None:
    variables = {"IS_OF_THIS_TEST": str(tmp_path)}
    before = time.monotonic()
    done = check(f"{MODELS}/misbehaved.py:StartsHelper", folder=tmp_path, **variables)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
    assert time.monotonic() - before < 60  # they live for 200 s
    assert left_behind(f"IS_OF_THIS_TEST={tmp_path}") == []


def test_a_model_that_changes_the_folder(tmp_path: Path) -> None:
    (tmp_path / "is-here").touch()
    (tmp_path / "hydra.py").write_text((MODELS / "misbehaved.py").read_text())
    functions = ("--loss", "hydra.py:sum_of", "--precision", "fp32,bf16")
    done = check("hydra.py:ChangesFolder", *functions, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr

"""The commands of docs/lightning.md, run on the files of that page, with a stand-in for Lightning."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.cli.processes import MODELS, ROOT, bsfind

PAGE = (ROOT / "docs" / "lightning.md").read_text(encoding="utf-8")
FILES = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^bsfind run (.*)$", PAGE, re.MULTILINE)
OPTIMIZERS = {"Classifier": "SGD", "Gan": "Adam, Adam", "Pair": "Adam, Adam"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page(command: str, tmp_path: Path) -> None:
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    precision = "amp-fp16" if "Gan" in command else "fp32"
    done = bsfind(
        *("run", *shlex.split(command), "--json", "--precision", precision),
        *("--max-batch-size", 64, "--app-dir", MODELS / "libraries"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["recommendation"]["batch_size"] == 64
    name = report["model"]["class_name"]
    assert report["model"]["optimizer"] == OPTIMIZERS[name]
    assumed = {made["what"]: made["value"] for made in report["workload"]["assumptions"]}
    assert assumed["optimizer"] == OPTIMIZERS[name]
    if "--input" not in command:
        assert assumed["inputs"] == "--input-shape 3,32,32 --input-shape :int64:0..10"
    if name != "Gan":  # its second optimizer steps when the first has its state
        peaks = report["results"][0]["trials"][0]["peaks_by_step"]
        assert peaks[1] > peaks[0]


def test_the_state_of_a_steps_own_optimizers_is_inspected(tmp_path: Path) -> None:
    name, text = FILES[1]
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = bsfind(
        *("inspect", "pair.py:Pair", "--step", "pair.py:step", "--input-shape", "64"),
        *("--gpu", "1GiB", "--batch-size", "8", "--precision", "fp32", "--json"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["results"]
    assert found["optimizer"] == "Adam, Adam"
    weights = 4 * 65 * 9
    assert found["composition"]["categories"]["optimizer_state"] >= 2 * weights


def test_what_the_stand_in_lacks_is_named(tmp_path: Path) -> None:
    (name, text), *_ = FILES
    asking = text.replace("images, labels = batch", "images, labels = batch; self.trainer.tuner")
    (tmp_path / name).write_text(asking, encoding="utf-8")
    done = bsfind(
        *("check", "lit.py:Classifier", "--gpu", "1GiB", "--batch-size", 4),
        *("--app-dir", MODELS / "libraries"),
        folder=tmp_path,
    )
    assert done.returncode == 4
    assert "asks for `self.trainer.tuner`, which bsfind's stand-in" in done.stderr
    assert "--step pkg.mod:fn" in done.stderr


COLLECTING = MODELS / "libraries" / "collecting.py"
SMALL = ("--input-shape", "16", "--gpu", "2GiB", "--precision", "fp32", "--max-batch-size", 64)


def test_what_the_end_of_an_epoch_frees_is_no_leak() -> None:
    done = bsfind(
        *("run", f"{COLLECTING}:FreedInTheEnd", *SMALL, "--json"),
        *("--app-dir", MODELS / "libraries"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["recommendation"]["batch_size"] == 64
    (warning,) = [w for w in report["warnings"] if w["code"] == "grows_in_epoch"]
    assert "grows by 390.6 KiB with every batch of an epoch" in warning["message"]
    assert "an epoch of 1,000 batches takes 381.5 MiB" in warning["message"]


@pytest.mark.parametrize("model", ["NeverFreed", "FullBeforeTheEnd"])
def test_what_outlasts_an_epoch_is_a_leak(model: str) -> None:
    done = bsfind("run", f"{COLLECTING}:{model}", *SMALL, "--app-dir", MODELS / "libraries")
    assert done.returncode == 4
    assert "memory still grows after" in done.stderr

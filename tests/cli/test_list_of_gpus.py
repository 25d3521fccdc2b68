"""`run` with a list of GPUs, through real processes: a prediction of each, as it is alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.cli.processes import MODELS, bsfind, document

import bsfind as library
from bsfind.errors import UsageError
from bsfind.report.json import gpus_schema

pytestmark = pytest.mark.slow

NET = f"{MODELS}/well_behaved.py:ConvNet"
ASKED = ("run", NET, "--input-shape", "3,32,32", "--precision", "amp")

NEW_ONLY = """
import torch


class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 64)
        if torch.cuda.get_device_capability() < (8, 0):
            raise RuntimeError("it wants a newer GPU")
"""


def found(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = bsfind(*arguments, "--json")
    assert done.returncode == code, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    jsonschema.Draft202012Validator(gpus_schema()).validate(document)
    return document


def test_each_has_the_report_that_it_has_alone(tmp_path: Path) -> None:
    markdown, trials = tmp_path / "gpus.md", tmp_path / "gpus.csv"
    exports = ("--export", markdown, "--export", trials)
    report = found(*ASKED, "--gpu", "4090,512MiB,t4", *exports)
    gpus = [card["gpu"] for card in report["cards"]]
    assert gpus == [str(512 << 20), "t4", "rtx-4090"]
    assert report["smallest"] == gpus[0]
    assert [card["results"][0]["precision"] for card in report["cards"]] == [
        "amp-bf16",
        "amp-fp16",
        "amp-bf16",
    ]
    alone = document(*ASKED, "--gpu", "t4")
    for part in ("results", "recommendation", "device", "model", "workload", "reproduce"):
        assert report["cards"][1][part] == alone[part]
    assert report["reproduce"].endswith(f"--gpu {','.join(gpus)}")
    size = alone["recommendation"]["batch_size"]
    assert "| t4 | 14.6 GiB | amp-fp16 |" in markdown.read_text()
    assert f"| {size:,} |" in markdown.read_text()
    assert {line.split(",")[0] for line in trials.read_text().splitlines()} == {"gpu", *gpus}


def test_scripts_read_a_line_for_each() -> None:
    asked = (*ASKED, "--gpu", "4090,512MiB,16MiB")
    done = bsfind(*asked, "-q")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [gpu for gpu, _ in lines] == [str(512 << 20), "rtx-4090"]
    assert "generic 16.0 MiB GPU: the CUDA context" in done.stderr
    small, large = (int(size) for _, size in lines)
    enough = found(*asked, "--fail-under", small + 1)
    assert (enough["smallest"], enough["status"]) == ("rtx-4090", "complete")
    none = bsfind(*asked, "-q", "--fail-under", large + 1)
    assert none.returncode == 1
    assert f"the largest recommended batch size, {large:,}, is below" in none.stderr
    assert none.stdout == done.stdout


def test_a_model_that_fails_on_one_is_a_row_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NEW_ONLY)
    asked = ("run", "net:Net", "--input-shape", "64", "--precision", "fp32", "--gpu")
    done = bsfind(*asked, "t4,24GiB", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "t4 14.6 GiB fp32 failed" in told
    assert "Smallest GPU with a recommended batch size: generic 24.0 GiB GPU, batch size" in told
    assert "t4: fp32: `RuntimeError: it wants a newer GPU` in net.py:9" in told
    assert "error" not in done.stderr
    done = bsfind(*asked, "t4,v100-sxm2-16gb", folder=tmp_path)
    assert done.returncode == 4
    assert done.stderr.count("error: ") == 1
    assert done.stdout == ""


def test_a_time_budget_is_one_for_all() -> None:
    report = found(*ASKED, "--gpu", "t4,l4,4090", "--time-budget", "1s", code=5)
    assert report["status"] == "partial"
    assert report["message"] == "the time budget of 1 s is spent"
    assert [card["gpu"] for card in report["cards"]] == ["t4"]
    assert report["not_tried"] == ["l4", "rtx-4090"]


def test_an_axis_is_searched_on_each() -> None:
    asked = ("run", NET, "--input-shape", "3,side,32", "--axis", "side", "-b", "64")
    report = found(*asked, "--precision", "fp32", "--gpu", "1GiB,2GiB")
    small, large = (card["recommendation"]["axis_size"] for card in report["cards"])
    assert large > 1.5 * small > 0


def test_github_is_told_the_smallest(tmp_path: Path) -> None:
    output, summary = tmp_path / "output", tmp_path / "summary"
    files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    done = bsfind(*ASKED, "--gpu", "4090,512MiB", "--github", **files)
    assert done.returncode == 0, done.stderr
    assert f"gpu={512 << 20}\n" in output.read_text()
    assert (
        "Smallest GPU with a recommended batch size: generic 512.0 MiB GPU" in summary.read_text()
    )


def test_python_asks_once_for_each() -> None:
    with pytest.raises(UsageError, match="`--gpu` names 2 GPUs, and this takes one"):
        library.find(NET, (3, 32, 32), gpu="t4,l4")

"""Predictions through real processes: a GPU that need not be there, on any build of torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bsfind.report.json import schema
from bsfind.simulation.gpu_catalogue import find_gpu

pytest.importorskip("pty", reason="terminals are tested where there are any")

import pty

from tests.cli.terminal import all_that_was_shown  # (after the check for pty)

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
NET = f"{MODELS}/well_behaved.py:ConvNet"
IMAGES = ("--input-shape", "3,32,32")
GIB = 1 << 30


def bsfind(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bsfind", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def document(*arguments: str, code: int = 0, **environment: str) -> dict[str, Any]:
    done = bsfind(*arguments, "--json", **environment)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.Draft202012Validator(schema()).validate(found)
    return found


# --------------------------------------------------------------------------------------- check


def test_check_says_what_fits_and_what_is_left() -> None:
    done = bsfind("check", NET, *IMAGES, "--gpu", "rtx-4090", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert "simulated NVIDIA GeForce RTX 4090" in done.stdout
    assert re.search(r"context [\d.]+ MiB \(modelled\) · torch \d", done.stdout)
    assert re.search(r"fp32 +batch size 8 fits: peak reserved .* GiB left", done.stdout)
    assert re.search(r"amp-bf16 +batch size 8 fits", done.stdout)
    assert "Predicted, not run." in done.stdout
    assert "samples/s" not in done.stdout


def test_what_is_assumed_is_named() -> None:
    arguments = ("check", NET, *IMAGES, "--gpu", "rtx-4090", "--batch-size", "8")
    done = bsfind(*arguments, "--precision", "fp32")
    first, _, assumed, *_ = done.stdout.splitlines()
    assert " · AdamW · cross-entropy on the output (N, 10) · training · " in first
    assert assumed == "assumed: loss, optimizer, dtype of input 1 (float32)"
    report = document(*arguments, "--precision", "fp32", "--loss", "mse", "--optimizer", "adamw")
    (only,) = report["workload"]["assumptions"]
    assert (only["what"], only["value"]) == ("dtype of input 1", "float32")


def test_check_that_does_not_fit() -> None:
    done = bsfind("check", NET, *IMAGES, "--gpu", "2GiB", "--batch-size", "100000")
    assert done.returncode == 1, done.stderr
    assert "batch size 100000 does not fit" in done.stdout


def test_check_as_json() -> None:
    report = document("check", NET, *IMAGES, "--gpu", "rtx-4090", "--batch-size", "8")
    assert report["simulated"] is True
    device = report["device"]
    assert device["kind"] == "simulated"
    assert device["name"] == "NVIDIA GeForce RTX 4090"
    assert device["compute_capability"] == "8.9"
    assert device["total_bytes"] == find_gpu("rtx-4090").total_bytes
    assert device["context_source"] == "modelled"
    assert device["free_bytes"] == device["total_bytes"] - device["context_bytes"]
    assert report["prediction"]["model_kind"] == "convolutional"
    assert report["prediction"]["allocator"] == {}
    assert report["search"]["gpu"] == "rtx-4090"
    for result in report["results"]:
        (trial,) = result["trials"]
        assert (trial["batch_size"], trial["status"], trial["steps"]) == (8, "ok", 3)
        assert 0 < trial["peak_allocated_bytes"] <= trial["peak_reserved_bytes"]
        assert trial["step_time_s"] is None
        assert trial["samples_per_s"] is None
        assert result["verified"] is False


def test_an_old_card_has_no_bfloat16() -> None:
    report = document("check", NET, *IMAGES, "--gpu", "t4", "--batch-size", "8")
    assert [result["precision"] for result in report["results"]] == ["fp32", "amp-fp16"]


# ----------------------------------------------------------------------------------------- run


def test_the_largest_and_what_leaves_the_headroom() -> None:
    report = document("run", NET, *IMAGES, "--gpu", "2GiB", "--context-memory", "100MiB")
    assert report["status"] == "complete"
    device = report["device"]
    assert (device["context_bytes"], device["context_source"]) == (100 << 20, "given")
    assert device["capacity_bytes"] == 2 * GIB - (100 << 20)
    for result in report["results"]:
        assert result["is_maximum_proven"]
        assert result["smallest_failed_batch_size"] == result["max_batch_size"] + 1
        assert 0 < result["recommended_batch_size"] < result["max_batch_size"]
        assert result["peak_reserved_bytes"] <= device["budget_bytes"]
        assert result["verified"] is False
        assert result["confirmation"] is None
    recommendation = report["recommendation"]
    assert "per second" not in recommendation["reason"]


def test_each_size_is_what_a_check_says() -> None:
    common = (NET, *IMAGES, "--gpu", "2GiB", "--precision", "fp32")
    (result,) = document("run", *common)["results"]
    largest = result["max_batch_size"]
    document("check", *common, "--batch-size", str(largest))
    document("check", *common, "--batch-size", str(largest + 1), code=1)


def test_the_table() -> None:
    done = bsfind("run", NET, *IMAGES, "--gpu", "a10g", "--memory-limit", "1GiB")
    assert done.returncode == 0, done.stderr
    assert "simulated NVIDIA A10G" in done.stdout.splitlines()[0]
    assert "limited to 1.0 GiB" in done.stdout
    assert "Predicted, not run: 20 steps, replayed within the budget." in done.stdout
    assert "Error bound for convolutional models:" in done.stdout
    assert "Confirmed" not in done.stdout
    assert "samples/s" not in done.stdout


def test_the_number_alone() -> None:
    done = bsfind("run", NET, *IMAGES, "--gpu", "2GiB", "-q")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\n", done.stdout)


def test_what_reproduces_it_asks_for_the_same() -> None:
    report = document("run", NET, *IMAGES, "--gpu", "RTX 3090", "--memory-limit", "1GiB")
    assert report["reproduce"].endswith("--gpu rtx-3090 --memory-limit 1GiB")


def test_the_largest_is_below_the_smallest_that_is_useful() -> None:
    done = bsfind(
        "run", NET, *IMAGES, "--gpu", "1GiB", "--context-memory", "0", "--min-batch-size", "99999"
    )
    assert done.returncode == 1, done.stderr


def test_the_options_of_the_allocator_are_followed() -> None:
    common = ("check", NET, *IMAGES, "--gpu", "24GiB", "-b", "100", "--precision", "fp32")
    plain = document(*common)
    other = document(*common, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    assert other["prediction"]["allocator"] == {"expandable_segments": True}
    reserved = [report["results"][0]["trials"][0] for report in (plain, other)]
    assert reserved[0]["peak_reserved_bytes"] != reserved[1]["peak_reserved_bytes"]
    # Blocks of expandable segments are always split: what is left over is never allocated along.
    assert reserved[0]["peak_allocated_bytes"] >= reserved[1]["peak_allocated_bytes"]


def test_options_of_the_allocator_that_are_wrong() -> None:
    done = bsfind(
        "check",
        NET,
        *IMAGES,
        *("--gpu", "24GiB", "-b", "8"),
        PYTORCH_CUDA_ALLOC_CONF="roundup_power2_divisions:3",
    )
    assert done.returncode == 2
    assert "roundup_power2_divisions" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_users_failures_are_the_users() -> None:
    done = bsfind("check", f"{MODELS}/well_behaved.py:Netz", *IMAGES, "--gpu", "24GiB", "-b", "8")
    assert done.returncode == 4
    assert "Netz" in done.stderr
    done = bsfind("check", NET, "--input-shape", "4,32,32", "--gpu", "24GiB", "-b", "8")
    assert done.returncode == 4
    assert "4,32,32" in done.stderr or "[8, 4, 32, 32]" in done.stderr


def test_an_instance_is_predicted_in_every_precision() -> None:
    """One process serves all precisions: none may leave its dtypes in the user's own object."""
    target = f"{MODELS}/well_behaved.py:instance"
    common = ("check", target, *IMAGES, "--gpu", "24GiB", "-b", "8")
    together = document(*common, "--precision", "bf16,fp32")
    alone = document(*common, "--precision", "fp32")
    assert together["results"][1]["trials"] == alone["results"][0]["trials"]


# ----------------------------------------------------------------------------- without naming one


def at_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Run bsfind with a terminal as its stdout; returns its exit code, stdout and stderr."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bsfind", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120", "NO_COLOR": "1"},
    )
    os.close(follower)
    shown = all_that_was_shown(leader)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r\n", "\n")
    return process.wait(timeout=60), plain, errors


@pytest.mark.parametrize(
    "command", [("run", "--memory-limit", "1GiB"), ("check", "--batch-size", "8")]
)
def test_at_a_terminal_a_known_gpu_stands_in(command: tuple[str, ...]) -> None:
    name, *options = command
    code, out, err = at_a_terminal(name, NET, *IMAGES, *options, "--precision", "fp32")
    assert code == 0, err
    assert err.splitlines()[0].startswith(
        "No usable GPU here: this predicts for the NVIDIA GeForce RTX 4090, and runs nothing."
    )
    assert "hint: `--gpu` names another one" in err
    title = " ".join(out.partition(" · torch ")[0].split())
    assert "simulated NVIDIA GeForce RTX 4090" in title


@pytest.mark.parametrize("options", [("-q",), ("--json",), ("--device", "cuda")])
def test_at_a_terminal_a_script_is_refused_all_the_same(options: tuple[str, ...]) -> None:
    code, _, err = at_a_terminal("run", NET, *IMAGES, *options)
    assert code == 3
    assert "no usable GPU was found" in err
    assert "`--gpu rtx-4090`" in err


# ------------------------------------------------------------------------------------------ env


def test_env_tells_whether_predictions_are_exact_with_this_torch() -> None:
    done = bsfind("env", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["simulator"].startswith(("exact: ", "coarse: "))


def test_gpus_says_what_they_are_for() -> None:
    done = bsfind("gpus")
    assert "`bsfind run … --gpu rtx-4090` predicts for one of the known GPUs" in done.stderr

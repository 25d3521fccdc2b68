"""`bsfind inspect` through real processes, on any build of torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.cli.processes import MODELS, ROOT, bsfind
from tests.cli.test_prediction import IMAGES, NET, at_a_terminal

from bsfind.report.json import inspection_schema

pytestmark = pytest.mark.slow

ON_3090 = ("--gpu", "rtx-3090")


def inspection(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = bsfind("inspect", *arguments, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.Draft202012Validator(inspection_schema()).validate(found)
    return found


def test_a_table_for_each_precision() -> None:
    done = bsfind("inspect", NET, *IMAGES, *ON_3090, "-b", "64", "--top", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "ConvNet" in lines[0]
    assert "simulated NVIDIA GeForce RTX 3090" in lines[0]
    assert sum("batch size 64 fits. The peak of" in line for line in lines) == 2
    assert sum(line.startswith("activations ") for line in lines) == 2
    assert sum(bool(re.match(r"body\.\d +[\d.]+ MiB", line)) for line in lines) == 4
    assert sum(bool(re.match(r"\d others +[\d.]+ MiB", line)) for line in lines) == 2


def test_the_document_agrees_with_check() -> None:
    common = (NET, *IMAGES, *ON_3090, "--batch-size", "64")
    found = inspection(*common)
    checked = json.loads(bsfind("check", *common, "--json").stdout)
    assert found["stands_for"] is None
    assert found["device"]["name"] == checked["device"]["name"]
    assert found["reproduce"].startswith("bsfind inspect ")
    for result, other in zip(found["results"], checked["results"], strict=True):
        composition, (trial,) = result["composition"], other["trials"]
        assert result["precision"] == other["precision"]
        assert composition["allocated_bytes"] == trial["peak_allocated_bytes"]
        assert composition["peak_reserved_bytes"] == trial["peak_reserved_bytes"]
        assert sum(composition["categories"].values()) == composition["allocated_bytes"]
        assert composition["cache_bytes"] >= 0
    assert "weight_casts" in found["results"][1]["composition"]["categories"]


def test_one_rank_of_several_gpus() -> None:
    model = f"{MODELS / 'blocks.py'}:Blocks"
    parallel = ("--parallel", "fsdp", "--world-size", "8", "--precision", "mp-bf16")
    found = inspection(model, "--input-shape", "64", *ON_3090, "-b", "8", *parallel)
    (result,) = found["results"]
    categories = result["composition"]["categories"]
    assert {"sharded_parameters", "unsharded_parameters", "all_gather_buffers"} <= set(categories)
    assert sum(categories.values()) == result["composition"]["allocated_bytes"]


def test_what_does_not_fit() -> None:
    limit = ("--memory-limit", "512MiB", "--precision", "fp32")
    common = (NET, *IMAGES, *ON_3090, *limit, "-b", "4096")
    (result,) = inspection(*common, code=1)["results"]
    composition = result["composition"]
    assert result["status"] == "does_not_fit"
    assert composition["failed"]["tried_bytes"] > 0
    assert composition["module"].startswith("body.")
    assert composition["reserved_bytes"] <= 512 << 20
    done = bsfind("inspect", *common)
    assert done.returncode == 1
    assert "batch size 4,096 does not fit. There was no room for" in done.stdout
    assert "at the failure" in done.stdout


def test_a_model_that_does_not_fit() -> None:
    target = f"{MODELS}/well_behaved.py:Blocks"
    common = (target, "--model-arg", "width=4096", "--input-shape", "4096", "--gpu", "1GiB")
    (result,) = inspection(*common, "-b", "1", "--precision", "fp32", code=1)["results"]
    composition = result["composition"]
    assert (composition["step"], composition["phase"]) == (0, "load")
    assert set(composition["categories"]) == {"parameters"}


def test_a_refusal_is_no_composition() -> None:
    target = f"{MODELS}/well_behaved.py:Normalised"
    common = (target, "--input-shape", "8", *ON_3090, "-b", "1", "--precision", "fp32")
    (result,) = inspection(*common, code=1)["results"]
    assert result["status"] == "refused"
    assert result["composition"] is None
    done = bsfind("inspect", *common)
    assert done.returncode == 1
    assert "was not tried: " in done.stdout


def test_the_users_failures_are_the_users() -> None:
    done = bsfind("inspect", NET, "--input-shape", "4,32,32", *ON_3090, "-b", "8")
    assert done.returncode == 4
    assert "[8, 4, 32, 32]" in done.stderr
    assert done.stdout == ""


def test_without_a_gpu_a_script_is_refused() -> None:
    done = bsfind("inspect", NET, *IMAGES, "-b", "8", "--json")
    assert done.returncode == 3
    assert "--gpu" in done.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_at_a_terminal_a_known_gpu_stands_in(options: tuple[str, ...]) -> None:
    code, out, err = at_a_terminal(
        "inspect", NET, *IMAGES, "-b", "8", "--precision", "fp32", *options
    )
    if options:
        assert code == 3
        return
    assert code == 0, err
    assert "RTX 4090" in err
    assert "simulated NVIDIA GeForce RTX 4090" in " ".join(out.split())  # it wraps


SLEEPER = """
import os, pathlib, subprocess, sys, time
from torch import nn

class Sleeper(nn.Module):
    def __init__(self):
        super().__init__()
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10_000)"])
        announcement = pathlib.Path(os.environ["ANNOUNCE"])
        announcement.with_suffix(".part").write_text(f"{os.getpid()} {child.pid}")
        announcement.with_suffix(".part").rename(announcement)
        time.sleep(10_000)
"""


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_interrupted(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    announcement = tmp_path / "announcement"
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", STARTED_BY_A_SHELL, "inspect", "sleeper:Sleeper"),
            *(*IMAGES, "-b", "8", *ON_3090),
        ],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ANNOUNCE": str(announcement),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT / "src"),
        },
    )
    deadline = time.monotonic() + 120
    while not announcement.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    if not announcement.exists():
        process.kill()
        raise AssertionError(process.communicate()[1])
    left = [int(pid) for pid in announcement.read_text().split()]
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    while any(is_alive(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in left)


# A test that is run in the background may have inherited that SIGINT is ignored.
STARTED_BY_A_SHELL = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from bsfind.__main__ import main; main()"
)

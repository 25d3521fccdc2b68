"""Output that cannot be written: a full disk, a reader that has gone. The answer is not lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path
from typing import IO

import pytest

from tests.gpu.gpu import MODELS, Gpu
from tests.gpu.processes import left_behind, wait_for
from tests.gpu.staged import UNPREDICTED

pytestmark = pytest.mark.faults

MODEL = f"{MODELS}/well_behaved.py:ConvNet"
CHECK = ("check", MODEL, "-b", "4", "--input-shape", "3,32,32", "--precision", "fp32")


def bsfind(
    gpu: Gpu,
    *arguments: str,
    out: int | IO[str] = subprocess.PIPE,
    err: int | IO[str] = subprocess.PIPE,
    largest_file: int | None = None,
) -> subprocess.Popen[str]:
    """Start a bsfind whose streams, or files, are not what they should be."""

    def limit_files() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        [gpu.python, "-m", "bsfind", *arguments],
        cwd=gpu.folder,
        env=gpu.environment(UNPREDICTED),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        text=True,
        preexec_fn=limit_files,
    )


def test_a_disk_that_is_full_keeps_the_old_file_and_the_answer(gpu: Gpu) -> None:
    """A limit on the size of files stands for the disk: writes fail in the middle."""
    old = Path(gpu.folder, "report.json")
    old.write_text("of the last run")
    process = bsfind(gpu, *CHECK, "--json", "--export", "report.json", largest_file=1024)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2  # the answer alone would be 0
    assert json.loads(out)["results"][0]["max_batch_size"] == 4
    assert err.count("cannot write `report.json`") == 1  # though it is tried after every trial
    assert old.read_text() == "of the last run"
    assert [path.name for path in gpu.folder.iterdir()] == ["report.json"]


def test_no_space_left_on_the_device(gpu: Gpu) -> None:
    Path(gpu.folder, "full.json").symlink_to("/dev/full")
    done = gpu.bsfind(*CHECK, "--export", "full.json", "--export", "good.json")
    assert done.code == 2
    assert "batch size 4 fits" in done.out
    assert "cannot write `full.json`: No space left on device" in done.err
    assert json.loads(Path(gpu.folder, "good.json").read_text())["status"] == "complete"


def test_stdout_on_a_full_disk(gpu: Gpu) -> None:
    with Path("/dev/full").open("w") as full:
        process = bsfind(gpu, *CHECK, "--json", "--export", "report.json", out=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert err.splitlines() == ["error: cannot write the answer: No space left on device"]
    assert json.loads(Path(gpu.folder, "report.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_a_reader_of_stdout_that_has_gone(gpu: Gpu, form: tuple[str, ...]) -> None:
    process = bsfind(gpu, *CHECK, *form)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    wait_for(lambda: not left_behind(f"BSFIND_LOCK_DIR={gpu.locks}"), seconds=10)


def test_a_reader_of_stderr_that_has_gone_costs_no_answer(gpu: Gpu) -> None:
    reading, writing = os.pipe()
    arguments = ("run", f"{MODELS}/misbehaved.py:Prints", "--input-shape", "16", "--json", "-v")
    process = bsfind(
        *(gpu, *arguments, "--precision", "fp32", "--max-batch-size", "6"), err=writing
    )
    os.close(writing)
    os.close(reading)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["recommendation"]["batch_size"] == 6
    wait_for(lambda: not left_behind(f"BSFIND_LOCK_DIR={gpu.locks}"), seconds=10)

"""Memory that the search cannot use: of another process, beyond the GPU (host memory), or of a whole card."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.gpu import MODELS, Gpu, Result
from tests.gpu.staged import VECTORS, StagedSearch

pytestmark = pytest.mark.faults

GIB = 1 << 30
IMAGES = ("--input-shape", "3,32,32", "--precision", "fp32")


class OtherProcess:
    """A process that takes memory of the fake GPU when it is told to.

    It is a slot of tests/fakegpu/csrc/machine.c (int32 PID, int32 GPU, uint64 bytes), the last one.
    """

    SLOTS, SIZE = 256, 16

    def __init__(self, state: Path) -> None:
        self.state = state
        self._process = subprocess.Popen(["sleep", "1000"])
        self.pid = self._process.pid

    def take(self, nbytes: int) -> None:
        with self.state.open("r+b") as file:
            file.seek((self.SLOTS - 1) * self.SIZE)
            file.write(struct.pack("=iiQ", self.pid, 0, nbytes))

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def other(fake_gpu: Gpu) -> Iterator[OtherProcess]:
    made = OtherProcess(fake_gpu.folder.with_name(f"{fake_gpu.folder.name}-state"))
    yield made
    made.end()


def disturbed(
    gpu: Gpu,
    other: OtherProcess,
    moment: str,
    nbytes: int,
    arguments: Sequence[str] = (),
    **fake: Any,
) -> Result:
    """Search on 4 GiB, of which another process takes some at a moment of the search."""
    with StagedSearch(
        gpu, moment, *arguments, limit=None, memory="4GiB", state_file=other.state, **fake
    ) as search:
        search.reach()
        other.take(nbytes)
        search.go_on()
        return search.end()


def the_warning(done: Result) -> str:
    assert done.out, done.err
    (warning,) = (w for w in done.report["warnings"] if w["code"] == "memory_taken")
    assert warning["message"] in done.err
    return str(warning["message"])


def test_memory_that_is_taken_between_trials_is_noticed_and_named(
    fake_gpu: Gpu, other: OtherProcess
) -> None:
    done = disturbed(fake_gpu, other, "second trial", 2 * GIB)
    assert done.code in (0, 1), done.err
    said = the_warning(done)
    assert f"sleep (PID {other.pid}) took 2." in said  # and the 300 MiB of its context
    left = 4 * GIB - 2 * GIB - 2 * (300 << 20)
    for trial in done.only["trials"]:
        if trial["status"] == "ok":
            assert trial["peak_reserved_bytes"] <= left
    if done.report["recommendation"] is not None:
        assert done.only["verified"]


def test_a_size_that_no_longer_runs_when_it_is_confirmed_is_not_recommended(
    fake_gpu: Gpu, other: OtherProcess
) -> None:
    sizes = ("--min-batch-size", "1000000", "--max-batch-size", "1000500")
    done = disturbed(fake_gpu, other, "confirmation", int(3.3 * GIB), sizes)
    assert done.code == 1, done.err
    the_warning(done)
    assert done.only["max_batch_size"] == 1_000_500  # it ran, before
    assert done.only["recommended_batch_size"] is None
    assert done.report["recommendation"] is None


def test_memory_that_is_taken_is_noticed_without_the_driver_s_help(
    fake_gpu: Gpu, other: OtherProcess
) -> None:
    done = disturbed(fake_gpu, other, "second trial", 2 * GIB, nvml=False)
    assert the_warning(done).startswith("another process took 2.")


def test_memory_beyond_the_limit_is_not_missed(fake_gpu: Gpu, other: OtherProcess) -> None:
    with StagedSearch(fake_gpu, "second trial", memory="4GiB", state_file=other.state) as search:
        search.reach()
        other.take(2 * GIB)
        search.go_on()
        done = search.end()
    assert done.code == 0, done.err
    assert "memory_taken" not in [warning["code"] for warning in done.report["warnings"]]


def test_host_memory_does_not_count_as_fitting(fake_gpu: Gpu) -> None:
    """Windows and WSL: allocations beyond the card succeed. The answer is that of the card."""

    def searched(**variables: str) -> tuple[int, int]:
        done = fake_gpu.run(
            *("well_behaved.py:ConvNet", *IMAGES, "--memory-limit", "2GiB"),
            memory="2GiB",
            variables=variables,
        )
        assert done.code == 0, done.err
        peaks = [trial["peak_reserved_bytes"] or 0 for trial in done.only["trials"]]
        assert max(peaks) <= done.report["device"]["free_bytes"]
        return done.only["max_batch_size"], done.only["recommended_batch_size"]

    assert searched(FAKE_GPU_SPILL="1") == searched()


def test_a_model_that_lifts_the_cap_is_caught_with_host_memory(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind(
        *("check", f"{MODELS}/staged.py:LiftsTheCap", "-b", "4", *VECTORS, "--json"),
        memory="2GiB",
        variables={"FAKE_GPU_SPILL": "1"},
    )
    assert done.code == 1, done.err
    (trial,) = done.only["trials"]
    assert trial["status"] == "oom"
    assert trial["message"].startswith("spilled into host memory: ")
    assert trial["message"].endswith(" of 1.7 GiB that were free on the GPU")


def test_a_slice_of_a_card_is_not_taken_for_the_card(fake_gpu: Gpu) -> None:
    """MIG: the memory is the slice's, and the whole card's prediction is not asked for."""
    done = fake_gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, "--memory-limit", "1GiB"),
        gpu="a100",
        memory="4864MiB",
        variables={"FAKE_GPU_NAME": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "FAKE_GPU_SMS": "14"},
    )
    assert done.code == 0, done.err
    assert done.report["device"]["total_bytes"] == 4864 << 20
    assert done.only["predicted"] is None
    assert done.only["is_maximum_proven"]

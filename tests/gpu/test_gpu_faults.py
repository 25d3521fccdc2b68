"""The GPU, the driver or the host fails in the middle of a search: told as what it is, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.gpu import LIMIT, MODELS, Gpu, Result
from tests.gpu.processes import left_behind, wait_for
from tests.gpu.staged import UNPREDICTED, VECTORS

pytestmark = pytest.mark.faults

IMAGES = ("--input-shape", "3,32,32", "--precision", "fp32")
SECOND_TRIAL = "600MiB"
"""The first trial holds less, the second more: it is the first that is large."""


def failing(gpu: Gpu, kind: str, *arguments: str) -> Result:
    """Search on a GPU that fails at the second batch size; what was known by then must be kept."""
    done = gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, "--export", "report.json", *arguments),
        fail=f"{kind}:{SECOND_TRIAL}",
        variables=UNPREDICTED,
    )
    assert Path(gpu.folder, "report.json").read_text() == done.out
    assert [trial["status"] for trial in done.only["trials"]][:1] == ["ok"]
    assert all(trial["status"] != "oom" for trial in done.only["trials"])
    assert done.only["max_batch_size"] == done.only["trials"][0]["batch_size"]
    wait_for(lambda: not left_behind(f"BSFIND_LOCK_DIR={gpu.locks}"), seconds=10)
    return done


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ecc", "the GPU failed: uncorrectable ECC error encountered"),
        ("launch-timeout", "the GPU's watchdog ended a kernel: the launch timed out"),
    ],
)
def test_a_gpu_that_fails_is_not_the_model_s_fault(fake_gpu: Gpu, kind: str, said: str) -> None:
    done = failing(fake_gpu, kind)
    assert done.code == 3, done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert done.report["message"].startswith(said)
    assert done.report["status"] == "partial"


@pytest.mark.parametrize(
    ("kind", "said", "hint"),
    [
        ("illegal-address", "a CUDA kernel failed: an illegal memory access", "also be the GPU"),
        ("assert", "an assertion in a CUDA kernel failed", "ranges of `--input`"),
    ],
)
def test_a_lost_context_names_the_kernel_and_the_gpu(
    fake_gpu: Gpu, kind: str, said: str, hint: str
) -> None:
    done = failing(fake_gpu, kind)
    assert done.code == 4, done.err
    assert said in done.err
    assert hint in done.err
    assert "CUDA_LAUNCH_BLOCKING=1" in done.err
    assert done.report["status"] == "failed"


@pytest.mark.parametrize(
    ("kind", "said"),
    [("segv", "SIGSEGV"), ("kill", "the system may have run out of host memory")],
)
def test_a_worker_that_dies_in_the_second_trial(fake_gpu: Gpu, kind: str, said: str) -> None:
    done = failing(fake_gpu, kind)
    assert done.code == 4, done.err
    assert said in done.err
    assert "batch size" in done.report["message"]


def test_a_kernel_that_hangs_in_the_second_trial(fake_gpu: Gpu) -> None:
    done = failing(fake_gpu, "hang", "--trial-timeout", "4s")
    assert done.code == 5, done.err
    assert "was given up: no answer after 4 s" in done.err
    assert done.report["status"] == "partial"
    assert done.report["recommendation"]["batch_size"] == done.only["max_batch_size"]


def test_a_gpu_that_is_gone_when_the_next_process_wants_it(fake_gpu: Gpu) -> None:
    lost = fake_gpu.folder.with_name(f"{fake_gpu.folder.name}-lost")
    done = fake_gpu.bsfind(
        *("run", f"{MODELS}/staged.py:LosesTheGpu", *VECTORS, "--max-batch-size", "6", "--json"),
        variables={"FAKE_GPU_LOST": str(lost), **UNPREDICTED},
    )
    assert done.code == 3, done.err
    assert "the GPU is gone: no usable GPU was found" in done.err
    assert "--gpu" not in done.err  # a prediction is no way out of this
    assert done.report["status"] == "partial"
    assert done.only["max_batch_size"] == 6


@pytest.mark.parametrize("nvml", [False, "missing"], ids=["failing", "missing"])
def test_out_of_memory_is_recognised_without_nvml(fake_gpu: Gpu, nvml: bool | str) -> None:
    done = fake_gpu.bsfind(
        *("check", f"{MODELS}/well_behaved.py:ConvNet", *IMAGES, "-b", "10000000", "--json"),
        *("--memory-limit", LIMIT),
        nvml=nvml,
    )
    assert done.code == 1, done.err
    assert [trial["status"] for trial in done.only["trials"]] == ["oom"]
    assert done.report["device"]["driver"] is None

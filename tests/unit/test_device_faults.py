"""Whose fault an error of CUDA is: the GPU's, a kernel's, or nobody's."""

from __future__ import annotations

import pytest

from bsfind.errors import BsfindError, ExitCode, GpuFaultError, TargetError
from bsfind.failures.gpu_faults import device_fault

ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def fault(error: BaseException) -> BsfindError | None:
    return device_fault(error, doing="batch size 4 in fp32", traceback="the traceback")


@pytest.mark.parametrize(
    "text",
    [
        "uncorrectable ECC error encountered",
        "uncorrectable NVLink error detected during the execution",
        "all CUDA-capable devices are busy or unavailable",
        "the launch timed out and was terminated",
        "unknown error",
    ],
)
def test_the_gpu_failed(text: str) -> None:
    found = fault(RuntimeError(f"CUDA error: {text}{ADVICE}"))
    assert isinstance(found, GpuFaultError)
    assert found.exit_code == ExitCode.NO_DEVICE
    assert found.message.endswith(f": {text}, batch size 4 in fp32")
    assert "traceback" not in found.detail


@pytest.mark.parametrize(
    "text",
    [
        "an illegal memory access was encountered",
        "misaligned address",
        "an illegal instruction was encountered",
        "invalid program counter",
        "unspecified launch failure",
    ],
)
def test_a_kernel_failed_and_it_may_be_the_gpu(text: str) -> None:
    found = fault(RuntimeError(f"CUDA error: {text}{ADVICE}"))
    assert isinstance(found, TargetError)
    assert text in found.message
    assert found.detail == "the traceback"
    assert "custom kernel" in found.hint
    assert "also be the GPU" in found.hint


def test_an_assertion_in_a_kernel_is_about_the_inputs() -> None:
    found = fault(RuntimeError(f"CUDA error: device-side assert triggered{ADVICE}"))
    assert isinstance(found, TargetError)
    assert "`--input`" in found.hint


def test_a_fault_that_was_raised_again_as_another_error() -> None:
    error = KeyError("something went wrong")
    error.__cause__ = RuntimeError("CUDA error: uncorrectable ECC error encountered")
    assert isinstance(fault(error), GpuFaultError)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug of my own"),
        ValueError("misaligned address book"),  # not what CUDA raises
        RuntimeError(f"CUDA error: out of memory{ADVICE}"),
        RuntimeError(f"CUDA error: no kernel image is available for execution{ADVICE}"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 5x6)"),
    ],
)
def test_other_errors_are_none_of_the_device_s(error: Exception) -> None:
    assert fault(error) is None

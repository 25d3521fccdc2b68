"""What a prediction does not follow: other versions of torch, and settings of the user's code."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bsfind.devices.modelled_torch import ModelledTorch
from bsfind.devices.prediction_limits import architecture_warnings, version_warnings
from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import InputSpec
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.gpus.catalogue import find_gpu

MODELS = Path(__file__).parents[1] / "models" / "operators.py"


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)


def installed(version: str, cuda: str | None = None) -> ModelledTorch:
    return ModelledTorch(version=version, cuda=cuda)


def codes_after(attribute: str, *shape: int) -> tuple[set[str], set[str]]:
    """Return the codes of the warnings after the model was loaded, and after a trial.

    Without the warning of a torch that no prediction was compared with, as the tests may have it.
    """
    inputs = (InputSpec(shape=shape, dtype="float32"),)
    workload = Workload(target=f"{MODELS}:{attribute}", inputs=inputs)
    with loaded_device(workload) as device:
        loaded = {warning.code for warning in device.take_warnings()} - {"torch_version"}
        device.run_trial(2, 1)
        ran = {warning.code for warning in device.take_warnings()}
        device.run_trial(3, 1)
        assert device.take_warnings() == []  # each is told once
    return loaded, ran


@contextlib.contextmanager
def loaded_device(workload: Workload) -> Iterator[SimulatedDevice]:
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx-4090"))
    device.load(workload, "fp32")
    try:
        yield device
    finally:
        assert device._tracer is not None
        device._tracer.close()


def test_settings_of_the_model_are_read_when_it_ran() -> None:
    assert codes_after("Convolutions", 3, 12, 12) == (set(), set())
    assert codes_after("Benchmarks", 3, 12, 12) == (set(), {"cudnn_benchmark"})


def test_settings_of_the_step_are_read_when_it_ran() -> None:
    _, ran = codes_after("Deterministic", 3, 12, 12)
    assert ran == {"cudnn_deterministic", "deterministic_algorithms"}


def test_settings_of_cudnn_matter_to_convolutions_only() -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    assert codes_after("Fused", 16, 12) == (set(), set())


@pytest.mark.one_torch
def test_rules_know_that_all_must_be_deterministic() -> None:
    """Embeddings of few words are then added without atomics, which takes more."""
    spec = InputSpec(shape=(4096,), dtype="int64", low=0, high=10)
    workload = Workload(target=f"{MODELS}:Words", inputs=(spec,))

    def peak() -> int:
        with loaded_device(workload) as device:
            return device.run_trial(4, 1).peak_allocated_bytes or 0

    before = peak()
    torch.use_deterministic_algorithms(True)
    assert peak() > before


@pytest.mark.parametrize("version", ["2.13.0", "2.13.1+cpu"])
def test_the_version_that_was_compared_needs_no_warning(version: str) -> None:
    assert version_warnings(installed(version)) == []


@pytest.mark.parametrize(
    ("version", "told", "not_told"),
    [
        ("2.12.1+cu130", "2.12: not compared; what is known to differ is modelled", "cuDNN"),
        ("2.11.0", "cuDNN 9.20", "3-D"),
        ("2.10.0", "2.10: not compared", "newer"),
        ("2.9.1+cu128", "3-D convolutions in half precision", "not compared"),
        ("2.9.1+cu128", "small test models are exact", "newer"),
        ("2.6.0", "small test models are exact", "3-D"),
        ("2.14.0.dev20261101", "cuDNN 9.20", "newer"),
        ("2.15.0", "not compared; a newer version than 2.14 is taken to be like it", "cuDNN"),
    ],
)
def test_other_versions_are_told(version: str, told: str, not_told: str) -> None:
    (warning,) = version_warnings(installed(version))
    assert warning.code == "torch_version"
    assert told in warning.message
    assert not_told not in warning.message


def test_workspaces_of_the_library_that_torch_has_are_not_those_of_another() -> None:
    (warning,) = version_warnings(installed("2.10.0+cu128"), lambda: True)
    assert "workspaces of convolutions" not in warning.message
    assert "3-D convolutions in half precision" in warning.message


def test_the_steps_of_a_slow_trace_repeat_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(target=f"{MODELS}:Convolutions", inputs=(InputSpec(shape=(3, 12, 12)),))
    trials = []
    for seconds in (10.0, 0.0):
        monkeypatch.setattr("bsfind.simulation.trace.traced_steps._LONG_S", seconds)
        with loaded_device(workload) as device:
            device.run_trial(4, 3)
            trials.append(device.run_trial(4, 20, exact=True))
    whole, slow = trials
    assert (whole.traced_steps, slow.traced_steps) == (20, 3)
    assert dataclasses.replace(slow, traced_steps=20) == whole


@pytest.mark.parametrize(
    ("gpu", "version", "cuda", "needed"),
    [
        ("gtx-1080", "2.13.0+cu130", "13.0", "7.5"),
        ("v100-sxm2-16gb", "2.13.0+cu130", "13.0", "7.5"),
        ("gtx-1080", "2.9.1+cu128", "12.8", "7.0"),
        ("gtx-1080", "2.13.0+cpu", None, "7.5"),  # stands for PyPI's wheel
        ("gtx-1080", "2.9.1", None, "7.0"),
    ],
)
def test_a_gpu_without_kernels_is_told(
    gpu: str, version: str, cuda: str | None, needed: str
) -> None:
    (warning,) = architecture_warnings(find_gpu(gpu), installed(version, cuda))
    assert warning.code == "gpu_architecture"
    assert f"it needs compute capability {needed} or newer" in warning.message


@pytest.mark.parametrize(
    ("gpu", "version", "cuda"),
    [
        ("t4", "2.13.0+cu130", "13.0"),
        ("24GiB", "2.13.0", None),
        ("gtx-1080", "2.13.0+cu126", "12.6"),
        ("v100-sxm2-16gb", "2.9.1+cu128", "12.8"),
        ("gtx-1080", "2.6.0", None),
        ("mi300x", "2.13.0", None),
    ],
)
def test_a_gpu_with_kernels_is_not(gpu: str, version: str, cuda: str | None) -> None:
    assert architecture_warnings(find_gpu(gpu), installed(version, cuda)) == []

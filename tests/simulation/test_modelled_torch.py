"""`--torch-version`: predictions for another release of PyTorch than the one that traces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bsfind.devices import modelled_torch, prediction_limits
from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import UsageError
from bsfind.inputs import InputSpec
from bsfind.parallel import Parallel
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.gpus.accuracy import ComparedRelease, Measured
from bsfind.units import MIB

MODELS = Path(__file__).parents[1] / "models" / "operators.py"
OWN = ".".join(torch.__version__.split(".")[:2])
COMPARED = ComparedRelease(
    against="torch 2.9.1 on a fake GPU",
    runs=69,
    exact=67,
    largest={"allocated": 0.003, "reserved": 0.0},
)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 2.4, older than any release that is installed here, and some more be compared."""
    known = Measured(
        torch="2.13", kinds={}, traces={OWN: dict.fromkeys(("2.4", "2.9", "2.13"), COMPARED)}
    )
    for module in (modelled_torch, prediction_limits):
        monkeypatch.setattr(module, "measured", lambda: known)


def device_for(release: str | None, gpu: str = "rtx-4090") -> SimulatedDevice:
    return SimulatedDevice(DeviceChoice(device="sim", gpu=gpu, torch_version=release))


def peak(device: SimulatedDevice) -> int:
    spec = InputSpec(shape=(8, 12), dtype="float32")
    device.load(Workload(target=f"{MODELS}:Products", inputs=(spec,)), "fp32")
    try:
        found = device.run_trial(4, 2).peak_allocated_bytes
    finally:
        device.close()
    assert found is not None
    return found


@pytest.mark.parametrize("release", [None, OWN])
def test_the_installed_release_is_what_it_is(release: str | None) -> None:
    found = device_for(release).describe()
    assert (found.torch_version, found.traced_by) == (torch.__version__, None)
    assert found.installed_torch == torch.__version__
    assert found.cuda_version == torch.version.cuda


def test_another_release_has_its_own_libraries() -> None:
    """2.4 stands for the oldest that is known, with CUDA 12.4 and cuDNN 9.1."""
    device = device_for("2.4")
    found = device.describe()
    assert (found.torch_version, found.cuda_version) == ("2.4", "12.4")
    assert found.traced_by == found.installed_torch == torch.__version__
    spec = device.gpu.spec("fp32")
    assert (spec.torch_version, spec.cudnn_version) == ((2, 4), 90100)


def test_a_release_that_was_not_compared_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        device_for("2.3")
    assert "those for 2.4 and 2.9 and 2.13 were" in error.value.message
    assert torch.__version__ in error.value.message
    assert "'torch==2.3.*'" in error.value.hint


def test_a_tracer_that_was_compared_with_nothing_refuses_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modelled_torch, "measured", lambda: Measured(torch="2.13", kinds={}))
    with pytest.raises(UsageError, match="nor for any other"):
        device_for("2.4")


def test_several_gpus_are_refused() -> None:
    workload = Workload(
        target=f"{MODELS}:Fused",
        inputs=(InputSpec(shape=(16, 12)),),
        parallel=Parallel(strategy="ddp", world_size=2),
    )
    with pytest.raises(UsageError, match=r"`--parallel` cannot be combined with `--torch-version"):
        device_for("2.4").load(workload, "fp32")


def test_the_warning_says_who_traces_and_what_was_compared() -> None:
    (warning,) = [w for w in device_for("2.4").take_warnings() if w.code == "torch_version"]
    assert f"torch {torch.__version__} traces the step" in warning.message
    assert "predicted for 2.4: 67 of 69 small test models are exact" in warning.message
    assert "0.3 % allocated" in warning.message
    assert "the operators that `cosine_similarity`" in warning.message


def test_the_release_that_has_an_error_bound_has_none_for_what_another_traces() -> None:
    modelled = modelled_torch.ModelledTorch(version="2.13", cuda="13.0", traced_by=f"{OWN}.0")
    (warning,) = prediction_limits.version_warnings(modelled)
    assert "predicted for 2.13: 67 of 69" in warning.message


@pytest.mark.one_torch
def test_cublaslt_has_a_workspace_of_its_own_before_2_12() -> None:
    """One of 1 MiB for the thread of the forward pass, whose products with a bias cuBLASLt runs."""
    older, own = peak(device_for("2.9")), peak(device_for(None))
    assert older - own == MIB

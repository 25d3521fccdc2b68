"""Each predicted trial begins with the state of a fresh model."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import InputSpec
from bsfind.settings import DeviceChoice, Workload

MODEL = f"{Path(__file__).parents[1]}/models/stateful.py:Seventh"
WHERE = ("attribute", "buffer", "global", "class", "batch_norm")


@pytest.mark.parametrize("where", WHERE)
def test_no_trial_goes_on_where_another_ended(where: str) -> None:
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="1GiB"))
    device.load(
        Workload(
            target=MODEL,
            model_args=(("where", where),),
            inputs=(InputSpec(shape=(256,)),),
            loss="mean",
        ),
        "fp32",
    )
    try:
        for batch_size in (640, 641, 643, 647):
            trial = device.run_trial(batch_size, 3)
            _, second, third = trial.peaks_by_step
            assert second == third, f"of batch size {batch_size}"
        assert "steps_differ" not in {warning.code for warning in device.take_warnings()}
    finally:
        device.tracer.close()

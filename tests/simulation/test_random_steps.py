"""Steps that depend on random numbers: the same answer every time, that of the largest step."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from tests.exhaustive import one_in
from tests.models.random_steps import DEPTH, KEEPS
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import InputSpec
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.trace.tracer import Tracer
from bsfind.trial import Trial
from bsfind.units import MIB
from bsfind.workload.precision import precision_plan
from bsfind.workload.randomness import reproducible_building, seed_generators
from bsfind.workload.step import LoadedWorkload, TrainingSteps

MODELS = Path(__file__).parents[1] / "models"
BATCH = 32
A100 = GPU_SPECS["a100"]


def workload(model: str, *, loss: str = "mean", **model_args: str) -> Workload:
    return Workload(
        target=f"{MODELS}/random_steps.py:{model}",
        model_args=tuple((name, repr(value)) for name, value in model_args.items()),
        inputs=(InputSpec(shape=(32, 64)),),
        loss=loss,
    )


class Told:
    """What a device says of steps that differ, and what it assumes."""

    def __init__(self, device: SimulatedDevice) -> None:
        said = [warning.code for warning in device.take_warnings()]
        self.codes = [code for code in said if code in ("random_steps", "steps_differ")]
        self.assumptions = [a for a in device.assumptions if a.what == "random numbers"]


def trial(
    model: str, *, batch_size: int = BATCH, steps: int = 3, **args: str
) -> tuple[Trial, Told]:
    """Return a predicted trial, and what the device said."""
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx-3090"))
    device.load(workload(model, **args), "fp32")
    try:
        found = device.run_trial(batch_size, steps)
        return found, Told(device)
    finally:
        assert device._tracer is not None
        device._tracer.close()


@pytest.fixture(scope="module")
def without_drops() -> Trial:
    return trial("layers")[0]


@pytest.mark.parametrize("keeps", one_in(4, KEEPS))
def test_layers_are_dropped_in_no_step(keeps: str, without_drops: Trial) -> None:
    found, told = trial("layers", keeps=keeps)
    assert found == without_drops
    assert told.codes == ["random_steps"]
    (assumed,) = told.assumptions
    assert assumed.value == "those of the largest step"
    assert "random_steps.py:" in assumed.why


@pytest.mark.parametrize("model", ["OneDrawForAll", "TwoRules", "OneOfThree"])
def test_draws_of_all_layers_at_once_or_by_other_rules(model: str, without_drops: Trial) -> None:
    found, told = trial(model)
    assert found.peak_allocated_bytes == without_drops.peak_allocated_bytes
    assert told.codes == ["random_steps"]


@pytest.mark.parametrize(
    "drawn",
    [
        *("python", "python_choice", "numpy", "torch", "dropped", "crop", "categorical"),
        # One element less than all: a slice, which older releases give a linear layer of its own.
        pytest.param("part", marks=pytest.mark.one_torch),
    ],
)
def test_sequences_of_random_length_have_the_longest(drawn: str, without_drops: Trial) -> None:
    found, told = trial("RandomLength", drawn=drawn)
    assert found.peak_allocated_bytes == pytest.approx(
        without_drops.peak_allocated_bytes, rel=0.02 if drawn == "part" else 0
    )
    assert told.codes == ["random_steps"]


def test_the_loss_is_that_of_the_longest_sequence() -> None:
    """Its output has the shape of the input, the shorter ones look like class scores."""
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx-3090"))
    device.load(workload("RandomLength", loss="auto", drawn="python"), "fp32")
    assert device._tracer is not None
    try:
        device.run_trial(BATCH, 3)
        (loss,) = (a.value for a in device.assumptions if a.what == "loss")
    finally:
        device._tracer.close()
    assert loss == "mse on the output (N, 32, 64)"


def test_what_has_the_probability_zero_is_not_tried(without_drops: Trial) -> None:
    found, told = trial("Certain")
    assert found == without_drops
    assert told.codes == []


@pytest.mark.parametrize("drawn", ["torch", "python", "numpy"])
def test_what_a_fixed_seed_draws_in_each_step_is_as_it_is(drawn: str, without_drops: Trial) -> None:
    found, told = trial("SeededInEachStep", drawn=drawn)
    assert found.peak_allocated_bytes is not None
    assert without_drops.peak_allocated_bytes is not None
    assert found.peak_allocated_bytes < without_drops.peak_allocated_bytes
    assert told.codes == []


def test_draws_that_the_model_cannot_run_with_are_left_out() -> None:
    found, told = trial("NeedsALayer")
    assert found.status == "ok"
    assert told.codes == ["random_steps"]


def test_draws_inside_of_a_checkpoint() -> None:
    everything, _ = trial("Checkpointed", rate="0")
    found, told = trial("Checkpointed", rate="0.5")
    assert found == everything
    assert told.codes == ["random_steps"]


def test_masks_change_nothing_and_cost_nothing() -> None:
    with mock.patch.object(
        TrainingSteps, "run", autospec=True, side_effect=TrainingSteps.run
    ) as run:
        _, told = trial("Masks")
    assert run.call_count == 3
    assert told.codes == []


def test_first_gradients_in_the_third_step_are_no_leak(without_drops: Trial) -> None:
    found, told = trial("FirstGradientLate")
    assert found.status == "ok"
    assert found.peak_allocated_bytes == without_drops.peak_allocated_bytes
    assert found.steps == 5  # two with all of the optimizer's state
    assert told.codes == []


def test_steps_that_differ_for_no_known_reason_are_told(without_drops: Trial) -> None:
    found, told = trial("Alternates")
    assert found.steps == 19  # the fourth is the first that trains every layer
    assert found.peak_allocated_bytes == without_drops.peak_allocated_bytes
    assert told.codes == ["steps_differ"]


def test_a_leak_is_told_whatever_is_dropped() -> None:
    found, _ = trial("DropsAndLeaks")
    assert found.leak is not None
    assert found.leak.bytes_per_step == MIB


def test_sizes_that_a_constructor_draws_are_the_same_measured_and_predicted() -> None:
    asked = workload("DrawsItsSizes")
    counts = []
    for _ in range(2):
        with reproducible_building():
            built = LoadedWorkload(asked, precision_plan("fp32"), torch.device("cpu"))
        counts.append(built.parameter_count())
    with Tracer(asked, "fp32", A100) as tracer:
        counts.append(tracer.parameters)
    assert len(set(counts)) == 1


def test_all_generators_are_seeded() -> None:
    def drawn() -> tuple[float, float, float]:
        seed_generators()
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    assert drawn() == drawn()


def test_functions_that_draw_are_put_back() -> None:
    functions = (random.random, random.Random.random, np.random.rand, np.random.default_rng)
    functions += (torch.rand, torch.Tensor.uniform_)
    trial("layers", keeps="torch_rand")
    after = (random.random, random.Random.random, np.random.rand, np.random.default_rng)
    assert functions == (*after, torch.rand, torch.Tensor.uniform_)
    assert len({random.random() for _ in range(DEPTH)}) > 1

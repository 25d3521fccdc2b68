"""A trial that repeats its last traced step is the trial of which every step is traced."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.exhaustive import exhaustive
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import InputSpec
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.trace.host_draws import HostDraws
from bsfind.simulation.trace.repetition import steps_before_repetition, with_more_steps
from bsfind.simulation.trace.tracer import Tracer
from bsfind.trial import Trial

MODELS = Path(__file__).parents[1] / "models"
A100 = GPU_SPECS["a100"]
IMAGES = InputSpec(shape=(3, 32, 32))
SIGNALS = InputSpec(shape=(64, 256))


def tracer(model: str, spec: InputSpec, precision: str = "fp32", **more: Any) -> Tracer:
    workload = Workload(target=f"{MODELS}/{model}", inputs=(spec,), **more)
    return Tracer(workload, precision, A100)


@pytest.mark.parametrize(
    ("model", "spec", "more"),
    [
        ("well_behaved.py:ConvNet", IMAGES, {}),
        ("well_behaved.py:ConvNet", IMAGES, {"optimizer": "sgd"}),
        ("well_behaved.py:ConvNet", IMAGES, {"grad_accum": 3}),
        ("well_behaved.py:ConvNet", IMAGES, {"mode": "infer"}),
        ("well_behaved.py:ConvNet", IMAGES, {"with_eval": True, "eval_batch_size": 16}),
        ("well_behaved.py:Blocks", SIGNALS, {"with_eval": True, "optimizer": "sgd"}),
        ("well_behaved.py:Blocks", SIGNALS, {"grad_checkpoint": True}),
        ("well_behaved.py:Blocks", SIGNALS, {"optimizer": "adagrad"}),
    ],
)
@pytest.mark.parametrize("precision", [exhaustive("fp32"), "amp-fp16"])
def test_repeated_is_as_traced(
    model: str, spec: InputSpec, more: dict[str, Any], precision: str
) -> None:
    with tracer(model, spec, precision, **more) as open_tracer:
        repeated = with_more_steps(open_tracer.program(6, 3), 9)
        traced = open_tracer.program(6, 9)
    assert repeated is not None
    steps = len(repeated.trial_events)
    assert repeated.trial_events == traced.trial_events[:steps]
    assert repeated.operators == traced.operators[: len(repeated.operators)]
    assert repeated.marks == traced.marks
    assert repeated.optional == traced.optional
    # What comes after the last step only gives back.
    assert all(event < 0 for event in traced.trial_events[steps:])


def test_steps_that_differ_say_nothing_of_the_next() -> None:
    with tracer("misbehaved.py:GrowsAndStops", InputSpec(shape=(16,))) as open_tracer:
        program = open_tracer.program(6, 3)
        assert with_more_steps(program, 3) is program
        assert with_more_steps(program, 20) is None


def test_two_steps_are_too_few() -> None:
    with tracer("well_behaved.py:ConvNet", IMAGES) as open_tracer:
        assert with_more_steps(open_tracer.program(6, 2), 20) is None


@pytest.mark.parametrize("model", ["KeepsThreeBatches", "KeepsTwoBatches"])
def test_a_list_that_fills_up_is_no_repetition(model: str) -> None:
    """Steps two and three do the same, but leave more and more."""
    with tracer(f"repetition.py:{model}", InputSpec(shape=(16,))) as open_tracer:
        assert with_more_steps(open_tracer.program(6, 3), 20) is None
        filled = with_more_steps(open_tracer.program(6, 3 + 3), 9)
        traced = open_tracer.program(6, 9)
    # What leaves the list is older than the step before: no step stands for the next.
    assert filled is None
    assert len(traced.step_ends) == 9


def test_the_last_batch_is_a_repetition() -> None:
    with tracer("repetition.py:KeepsTheLastBatch", InputSpec(shape=(16,))) as open_tracer:
        repeated = with_more_steps(open_tracer.program(6, 3), 9)
        traced = open_tracer.program(6, 9)
    assert repeated is not None
    assert repeated.trial_events == traced.trial_events[: len(repeated.trial_events)]


@pytest.mark.parametrize(("model", "last"), [("EveryFourth", 8), ("EveryNinth", 9)])
def test_steps_that_do_more_now_and_then_are_met(model: str, last: int) -> None:
    for steps, alike_from in ((3, 1), (10, last)):
        with tracer(f"repetition.py:{model}", InputSpec(shape=(16,))) as open_tracer:
            assert steps_before_repetition(open_tracer.program(6, steps)) == alike_from


@pytest.mark.parametrize("precision", ["fp32", "amp-fp16"])
def test_a_trace_that_grows_with_the_batch_is_shorter_and_the_same(precision: str) -> None:
    with tracer("repetition.py:SampleBySample", InputSpec(shape=(16,)), precision) as open_tracer:
        open_tracer.program(3, 3)
        short = open_tracer.program(12, 3)
        assert (len(short.step_ends), short.repeats) == (2, True)
        repeated = with_more_steps(short, 5)
    with tracer("repetition.py:SampleBySample", InputSpec(shape=(16,)), precision) as open_tracer:
        traced = open_tracer.program(12, 5)
    assert repeated is not None
    assert repeated.trial_events == traced.trial_events[: len(repeated.trial_events)]
    assert repeated.marks == traced.marks


def test_an_exact_trace_is_not_shortened() -> None:
    with tracer("repetition.py:SampleBySample", InputSpec(shape=(16,))) as open_tracer:
        open_tracer.program(3, 3)
        assert len(open_tracer.program(12, 3).step_ends) == 2
        assert len(open_tracer.program(12, 3, exact=True).step_ends) == 3


def test_what_a_batch_function_draws_is_written_once() -> None:
    draws = HostDraws()
    some = torch.randn(100)
    first, second = (draws.like(some, "aten::randn", 1000) for _ in range(2))
    assert set(first.tolist()) == set(second.tolist()) == set(some.tolist())
    assert not torch.equal(first, second)
    second.zero_()
    assert first.count_nonzero() == 1000
    assert draws.like(some, "aten::randn", 1000).count_nonzero() == 1000


# ------------------------------------------------------------------------ several precisions


def confirmed(device: SimulatedDevice, attribute: str, precision: str) -> Trial:
    """Return an exact trial of 20 steps."""
    device.load(
        Workload(
            target=f"{MODELS}/repetition.py:{attribute}",
            inputs=(InputSpec(shape=(16,), dtype="float32"),),
        ),
        precision,
    )
    device.run_trial(4, 3)
    return device.run_trial(8, 20, exact=True)


@pytest.mark.parametrize(("attribute", "traced"), [("Wide", 3), ("EveryNinth", 20)])
def test_steps_that_are_alike_in_one_precision_are_not_all_traced_in_another(
    attribute: str, traced: int
) -> None:
    choice = DeviceChoice(device="sim", gpu="a10g")
    device, alone = SimulatedDevice(choice), SimulatedDevice(choice)
    try:
        assert confirmed(device, attribute, "fp32").traced_steps == 20
        second = confirmed(device, attribute, "amp-bf16")
        assert second.traced_steps == traced
        device.close()
        expected = confirmed(alone, attribute, "amp-bf16")
        assert expected.traced_steps == 20
        assert dataclasses.replace(second, traced_steps=20) == expected
    finally:
        device.close()
        alone.close()


def test_steps_of_another_model_are_all_traced() -> None:
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="a10g"))
    try:
        confirmed(device, "Wide", "fp32")
        assert confirmed(device, "KeepsTheLastBatch", "amp-bf16").traced_steps == 20
    finally:
        device.close()

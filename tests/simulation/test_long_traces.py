"""Steps that are loops over time: few traces are made of them, of few steps, and these say the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.exhaustive import exhaustive
from tests.simulation.corpus.case import Case, Run
from tests.simulation.event_alignment import normalised
from tests.simulation.gpu_specs import GPU_SPECS
from tests.simulation.oracle import Oracle, why_there_is_none
from tests.simulation.simulated import target_of

from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import TimeLimitError
from bsfind.inputs import InputSpec
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace import repetition
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.repetition import with_more_steps
from bsfind.simulation.trace.tracer import Tracer

SCANS = Path(__file__).parents[1] / "models" / "scans.py"
A100 = GPU_SPECS["a100"]
TIME_STEPS = 24
SIZES = (5, 37, 11)


@pytest.fixture(autouse=True)
def _long_from_few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "_MANY", 300)


def workload(model: str, **more: Any) -> Workload:
    return Workload(target=f"{SCANS}:{model}", inputs=(InputSpec(shape=(TIME_STEPS, 16)),), **more)


def open_tracer(model: str, precision: str = "fp32", gpu: GpuSpec = A100, **more: Any) -> Tracer:
    return Tracer(workload(model, **more), precision, gpu)


def counting(calls: list[str]) -> Any:
    """Return a patch that has `calls` name the operators that are run."""
    run: Callable[..., Any] = Dispatcher.run

    def counted(dispatcher: Dispatcher, facts: Any, *args: Any, **more: Any) -> Any:
        calls.append(facts.name)
        return run(dispatcher, facts, *args, **more)

    return mock.patch.object(Dispatcher, "run", counted)


def followed(tracer: Tracer, batch_size: int) -> Program:
    """Return the program of a size that follows from three traces."""
    for size in SIZES:
        assert tracer.program(size, 3).traced_steps == (3 if size == SIZES[0] else 2)
    program = tracer.program(batch_size, 3)
    assert (program.traced_steps, program.repeats, tracer.sizes_follow) == (0, True, True)
    return program


@pytest.mark.parametrize(
    ("model", "precision", "more"),
    [
        exhaustive("SelectiveScan", "fp32", {}),
        ("SelectiveScan", "amp-bf16", {"optimizer": "sgd"}),
        exhaustive("Cells", "amp-fp16", {}),
        ("Cells", "fp32", {"grad_accum": 2}),
    ],
)
def test_what_follows_is_as_traced(model: str, precision: str, more: dict[str, Any]) -> None:
    with open_tracer(model, precision, **more) as tracer:
        repeated = with_more_steps(followed(tracer, 100), 5)
    with open_tracer(model, precision, **more) as tracer:
        traced = tracer.program(100, 5)
    assert repeated is not None
    steps = len(repeated.trial_events)
    assert repeated.trial_events == traced.trial_events[:steps]
    assert repeated.operators == traced.operators[: len(repeated.operators)]
    assert repeated.marks == traced.marks
    assert all(event < 0 for event in traced.trial_events[steps:])


@pytest.mark.gpu
@pytest.mark.skipif(why_there_is_none() is not None, reason=str(why_there_is_none()))
@pytest.mark.parametrize("model", ["SelectiveScan", "Cells"])
@pytest.mark.parametrize("precision", [exhaustive("fp32"), "amp-bf16"])
def test_what_follows_is_as_on_the_fake_gpu(model: str, precision: str) -> None:
    case = Case(name=model, family="scans", kind="other", workload=workload(model))
    with Oracle(cudnn=False) as oracle:
        result = oracle.ask(Run(case=case, precision=precision, batch_size=64))
    assert result["status"] == "ok", result
    with open_tracer(model, precision, target_of(result)) as tracer:
        repeated = with_more_steps(followed(tracer, 64), 3)
    assert repeated is not None
    expected = normalised([*result["load_events"], *result["trial_events"]])
    found = normalised([*repeated.load_events, *repeated.trial_events])
    # The releases after the last step are left out.
    last = max(place for place, event in enumerate(found) if event >= 0)
    assert found[: last + 1] == expected[: last + 1]
    assert all(event < 0 for event in expected[last + 1 :])


def test_three_sizes_take_seven_steps_and_others_none() -> None:
    calls: list[str] = []
    with counting(calls), open_tracer("SelectiveScan") as tracer:
        calls.clear()
        tracer.program(SIZES[0], 3)
        three = len(calls)
        for size in SIZES[1:]:
            tracer.program(size, 3)
        assert 7 * three / 3 - 50 < len(calls) < 7 * three / 3 + 50
        calls.clear()
        for size in range(50, 60):
            assert tracer.program(size, 3).traced_steps == 0
        assert not calls


def test_steps_before_an_evaluation_are_all_traced() -> None:
    with open_tracer("SelectiveScan", with_eval=True) as tracer:
        for size in SIZES:
            assert tracer.program(size, 3).traced_steps == 3
        program = tracer.program(100, 3)
    with open_tracer("SelectiveScan", with_eval=True) as tracer:
        traced = tracer.program(100, 3)
    assert program.traced_steps == 0
    assert program.trial_events == traced.trial_events


def test_an_exact_trace_that_goes_on_otherwise_is_believed() -> None:
    with open_tracer("ThirdStep") as tracer:
        followed(tracer, 100)
        exact = tracer.program(100, 3, exact=True)
        assert exact.traced_steps == 3
        assert with_more_steps(exact, 20) is None
        later = tracer.program(90, 3)
        assert (later.traced_steps, later.repeats) == (3, False)
    with open_tracer("ThirdStep") as tracer:
        assert later.trial_events == tracer.program(90, 3).trial_events


@pytest.mark.parametrize("most", [100, 500])  # in the forward pass, in the backward pass
def test_a_search_is_refused_in_the_first_step_and_a_check_is_not(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bsfind.devices.trial_programs._MOST_ENTRIES", most)
    # Only the step that was asked for counts, and not one of shorter sequences.
    monkeypatch.setattr("bsfind.devices.simulated.searched_length", lambda *_: None)
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="a10g"))
    calls: list[str] = []
    try:
        device.load(workload("SelectiveScan"), "fp32")
        with (
            counting(calls),
            pytest.raises(TimeLimitError, match=f"more than {most} times") as raised,
        ):
            device.run_trial(5, 3)
        # Variables of models of other tests in this process are set back, too.
        of_step = [name for name in calls if name != "aten::copy_"]
        assert most / 4 < len(of_step) < 2 * most
        assert "check" in (raised.value.hint or "")
        trial = device.run_trial(5, 3, exact=True)
        assert (trial.status, trial.traced_steps) == ("ok", 3)
    finally:
        device.close()

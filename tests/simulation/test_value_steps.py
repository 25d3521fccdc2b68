"""Shapes that depend on values: sizes at other batch sizes than those that ran with values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.errors import TargetError, UntraceableError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.tracer import Tracer
from bsfind.simulation.trace.value_shapes import ValueShapes

MODELS = Path(__file__).parents[1] / "models" / "value_dependent.py"
A100 = GPU_SPECS["a100"]


def workload(attribute: str, *shape: int, **settings: Any) -> Workload:
    spec = InputSpec(shape=shape, dtype="float32")
    return Workload(target=f"{MODELS}:{attribute}", inputs=(spec,), **settings)


def traced(
    attribute: str, *shape: int, batch_size: int, precision: str = "fp32", **settings: Any
) -> tuple[Program, str]:
    """Return the program of two steps, and what is assumed of values."""
    with Tracer(workload(attribute, *shape, **settings), precision, A100) as tracer:
        program = tracer.program(batch_size, 2)
        assumed = [a.value for a in tracer.assumptions if a.what == "shapes that depend on values"]
        return program, "".join([*assumed, tracer.notes["value_shapes"]])


def sizes(program: Program) -> list[int]:
    return [event for event in program.trial_events if event >= 0]


def test_a_mask_selects_in_proportion() -> None:
    program, said = traced("EverySecond", 10, 8, batch_size=300)
    selected = 300 * 5
    assert selected * 24 * 4 in sizes(program)  # the output of the layer after the mask
    assert selected * 2 * 8 in sizes(program)  # its indices
    assert "steps on the CPU" in said
    assert "between 2 seeds the memory of a step varied by 0.0%" in said


def test_a_mask_selects_as_many_in_the_backward_pass() -> None:
    program, said = traced("TwoMasks", 10, 8, batch_size=300)
    assert program.trial_events
    assert "steps on the CPU" in said


def test_a_list_as_an_index_has_values() -> None:
    program, _ = traced("Permuted", 10, 8, batch_size=300)
    assert 300 * 10 * 24 * 4 in sizes(program)  # two of four positions, of which two make a row


@pytest.mark.parametrize("reads_counts", [False, True])
def test_the_pairs_of_a_batch_are_counted(reads_counts: bool) -> None:
    arguments = (("reads_counts", str(reads_counts)),)
    program, _ = traced("Pairs", 8, batch_size=300, model_args=arguments, loss="mean")
    assert 300 * 299 * 4 in sizes(program)


@pytest.mark.parametrize("reads_counts", [False, True])
def test_tokens_of_experts_add_up(reads_counts: bool) -> None:
    program, _ = traced(
        *("Experts", 5, 16), batch_size=301, model_args=(("reads_counts", str(reads_counts)),)
    )
    forward_end = next(place for place, name in program.marks if name == "forward_end")
    hidden = [size for size in program.trial_events[:forward_end] if size > 0 and size % 508 == 0]
    # Each of four experts has a hidden layer of 127 floats before and after its activation function.
    assert len(hidden) == 8
    assert sum(hidden) == 2 * (301 * 5 * 2) * 508


def test_recomputed_activations_have_the_same_sizes() -> None:
    program, _ = traced("Checkpointed", 5, 16, batch_size=33)
    assert program.trial_events


def test_each_sample_selects_as_many() -> None:
    program, _ = traced("PerSample", 20, 8, batch_size=200)
    assert sizes(program).count(3 * 32 * 4) >= 200


def test_other_precisions_take_the_same_steps() -> None:
    shapes = ValueShapes()
    asked = workload("Experts", 5, 16)
    with Tracer(asked, "fp32", A100, shapes=shapes) as tracer:
        tracer.program(8, 2)
    steps = list(shapes.steps)
    with Tracer(asked, "amp-bf16", A100, shapes=shapes) as tracer:
        tracer.program(8, 2)
    assert shapes.steps == steps


def test_what_the_cpu_cannot_compute_is_refused_with_its_line() -> None:
    with pytest.raises(UntraceableError, match=r"nonzero` in value_dependent\.py") as caught:
        traced("OnlyOnCuda", 8, batch_size=4)
    assert "which the CPU could not compute" in str(caught.value)


def test_a_mistake_of_the_user_is_told_as_that() -> None:
    with pytest.raises(TargetError, match="shapes cannot be multiplied") as caught:
        traced("EverySecond", 6, 9, batch_size=4)
    assert not isinstance(caught.value, UntraceableError)
    assert "value_dependent.py" in caught.value.detail

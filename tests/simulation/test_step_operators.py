"""What a step consists of, by the operators that were traced."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace.program import StepOperators
from bsfind.simulation.trace.tracer import Tracer

MODELS = Path(__file__).parents[1] / "models" / "operators.py"
A100 = GPU_SPECS["a100"]


def operators_of(attribute: str, *shape: int, precision: str = "fp32") -> StepOperators:
    inputs = (InputSpec(shape=shape, dtype="float32"),)
    workload = Workload(target=f"{MODELS}:{attribute}", inputs=inputs)
    with Tracer(workload, precision, A100) as tracer:
        assert tracer.steps.operators is None
        tracer.program(2, 1)
        assert tracer.steps.operators is not None
        return tracer.steps.operators


@pytest.mark.parametrize(
    ("attribute", "shape", "counts", "kind"),
    [
        ("Convolutions", (3, 12, 12), (2, 0, 0), "convolutional"),
        ("Fused", (16, 12), (0, 1, 0), "attention"),
        ("WrittenOut", (16, 12), (0, 1, 0), "attention"),
        ("Patches", (3, 16, 16), (1, 2, 0), "attention"),
        ("Recurrent", (16, 12), (1, 0, 1), "recurrent"),
        ("Products", (16, 12), (0, 0, 0), "other"),
    ],
)
def test_operators_tell_the_kind(
    attribute: str, shape: tuple[int, ...], counts: tuple[int, int, int], kind: str
) -> None:
    found = operators_of(attribute, *shape)
    assert (found.convolutions, found.attentions, found.recurrent) == counts
    assert found.kind == kind


def test_autocast_changes_nothing() -> None:
    assert operators_of("WrittenOut", 16, 12, precision="amp-fp16").kind == "attention"
    assert operators_of("Fused", 16, 12, precision="amp-bf16").kind == "attention"


def test_a_tie_is_what_is_harder_to_predict() -> None:
    assert StepOperators(convolutions=3, attentions=3).kind == "convolutional"

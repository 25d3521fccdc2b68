"""Values that nobody knows are read as training in good health has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.exhaustive import exhaustive
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.errors import TargetError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace.tracer import Tracer

MODELS = Path(__file__).parents[1] / "models" / "read_values.py"
A100 = GPU_SPECS["a100"]


def notes_of(function: str, precision: str = "fp32") -> dict[str, str]:
    workload = Workload(
        target=f"{MODELS}:Reads",
        model_args=(("function", function),),
        inputs=(InputSpec(shape=(32,), dtype="float32"),),
    )
    with Tracer(workload, precision, A100) as tracer:
        assert tracer.program(4, 2).trial_events
        return tracer.notes


@pytest.mark.parametrize(
    "function",
    [
        *("normal", "multivariate", "squashed", "boxes", "finite", "inverted", "logs", "joined"),
        *map(exhaustive, ("categorical", "beta", "gumbel", "bounded", "equal", "masked")),
        exhaustive("inverse_spectrum"),
    ],
)
def test_checks_of_code_that_trains_pass_without_a_note(function: str) -> None:
    assert notes_of(function) == {}


@pytest.mark.parametrize("function", ["normal", "finite", "logs"])
def test_checks_pass_with_a_loss_scaler(function: str) -> None:
    assert notes_of(function, "amp-fp16") == {}


def test_a_branch_names_its_line_and_what_it_was_taken_for() -> None:
    (note,) = notes_of("branches").values()
    line = MODELS.read_text().splitlines().index("def branches(h):") + 2
    assert note.startswith(f"`read_values.py:{line}` reads a value that depends on data")
    assert note.endswith("it is taken as True")


def test_a_branch_on_a_float_is_named_too() -> None:
    (note,) = notes_of("branches_on_a_float").values()
    line = MODELS.read_text().splitlines().index("def branches_on_a_float(h):") + 2
    assert note.startswith(f"`read_values.py:{line}` reads a value that depends on data")
    assert note.endswith("it is taken as 0.0")


def test_the_answer_that_raised_is_not_the_one_that_is_told() -> None:
    (note,) = notes_of("asks_a_helper").values()
    assert note.endswith("it is taken as True")


def test_an_error_that_no_answer_avoids_is_the_users() -> None:
    with pytest.raises(TargetError, match="never good either"):
        notes_of("wrong")

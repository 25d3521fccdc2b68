"""Shapes that depend on values: sizes at other batch sizes than those that ran with values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.errors import TargetError, UntraceableError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace import value_shapes, value_steps
from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.tracer import Tracer
from bsfind.simulation.trace.value_kernels import CPU_KERNELS
from bsfind.simulation.trace.value_shapes import ValueShapes, ValueStep
from bsfind.simulation.trace.values import TooMuchComputedError
from bsfind.workload.loss_choice import LossChoice

MODELS = Path(__file__).parents[1] / "models" / "value_dependent.py"
LIBRARIES = MODELS.parent / "libraries"
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


def routed(monkeypatch: pytest.MonkeyPatch, kind: str = "Routed") -> Workload:
    """Return a workload of a routed language model of the stand-in for transformers."""
    monkeypatch.syspath_prepend(str(LIBRARIES))
    return Workload(target=f"transformers:{kind}ForCausalLM", app_dir=str(LIBRARIES))


def test_long_sequences_run_with_values_in_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, asked = ValueShapes(), routed(monkeypatch)
    with Tracer(asked, "fp32", A100, shapes=shapes) as tracer:
        all_lengths = tracer.program(9, 2)
        assert shapes.compared is None
    monkeypatch.setattr(value_steps, "_MUCH", 100_000)
    few = ValueShapes()
    with Tracer(asked, "fp32", A100, shapes=few) as tracer:
        program = tracer.program(9, 2)
        said = [a.why for a in tracer.assumptions if a.what == "shapes that depend on values"]
    assert [(step.batch_size, step.length) for step in few.steps] == [(1, None)] * 2
    assert few.compared is not None
    assert [(step.batch_size, step.length) for step in few.compared] == [(2, 64), (1, 64)]
    assert "batch sizes 1 and 2 with sequences of 64 tokens" in said[0]
    # The expert is full in a whole sequence, and not in a short one.
    assert sizes(program).count(100 * 24 * 4) >= 9
    assert program.trial_events == all_lengths.trial_events


def test_labels_are_tried_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[tuple[bool, bool]] = []
    needs_a_try = LossChoice.needs_a_try

    def noted(choice: LossChoice, *args: Any) -> bool:
        needed = needs_a_try(choice, *args)
        tries.append((shapes.recorded is not None, needed))
        return needed

    monkeypatch.setattr(LossChoice, "needs_a_try", noted)
    asked, shapes = routed(monkeypatch, "Masked"), ValueShapes()
    with Tracer(asked, "amp-bf16", A100, shapes=shapes) as tracer:
        tracer.program(4, 2)
        chosen = [a.value for a in tracer.assumptions if a.what == "loss"]
    assert chosen == ["the model's own loss from `labels` (N, 1024)"]
    assert tries[0] == (False, True)
    assert not any(needed for _, needed in tries[1:])
    assert (True, False) in tries  # a step with values took the labels that were found


def answers(
    monkeypatch: pytest.MonkeyPatch, *, meets_other_places: bool = False, at_least: int = 0
) -> tuple[ValueShapes, list[tuple[int, int, int | None]]]:
    """Return the shapes of steps that select a quarter of 1024 tokens and read a count, and which ran."""
    place = ("nonzero", "here")
    monkeypatch.setattr(value_shapes, "_place", lambda _operator="": ("here",))
    ran: list[tuple[int, int, int | None]] = []

    def run(step: ValueStep) -> None:
        ran.append((step.seed - value_steps.SEED, step.batch_size, step.length))
        tokens = step.batch_size * (step.length or 1024)
        step.computed_bytes = tokens << 20
        if step.most_computed is not None and step.computed_bytes > step.most_computed:
            raise TooMuchComputedError
        step.nbytes = tokens * (100 + step.seed - value_steps.SEED)
        site = ("nonzero", "there") if meets_other_places and step.length else place
        step.sizes[site] = [(tokens, max(at_least, tokens // 4))]
        step.reads["read", "here"] = [torch.tensor([tokens // 4, 7])]

    shapes = ValueShapes()
    value_steps.run_with_values(shapes, lambda _: None, run, lambda: 64)
    shapes.begin(50)
    return shapes, ran


def test_what_grows_with_the_batch_is_seen_in_short_sequences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes, ran = answers(monkeypatch)
    assert ran == [(0, 2, None), (0, 2, 64), (0, 1, 64), (0, 1, None), (1, 1, None)]
    assert shapes.size("nonzero", 50 * 1024) == 50 * 256
    assert shapes.spread == pytest.approx(0.01)


def test_short_sequences_that_meet_other_places_tell_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes, ran = answers(monkeypatch, meets_other_places=True)
    assert shapes.compared is None
    assert [item for item in ran if item[2] is None][-3:] == [
        (0, 2, None),
        (0, 1, None),
        (1, 1, None),
    ]
    assert shapes.size("nonzero", 50 * 1024) == 50 * 256


def test_a_least_number_of_short_sequences_is_no_law(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, _ = answers(monkeypatch, at_least=100)
    assert shapes.compared is None
    assert shapes.size("nonzero", 50 * 1024) == 50 * 256


def test_dropout_with_values_keeps_as_many_as_it_should() -> None:
    x = torch.ones(3, 1_000_003)
    out, mask = CPU_KERNELS["aten::native_dropout"](x, 0.1, True)
    assert out.shape == mask.shape == x.shape
    assert mask.float().mean().item() == pytest.approx(0.9, abs=0.005)
    torch.testing.assert_close(out, mask / 0.9)

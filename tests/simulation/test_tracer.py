"""What the tracer does with the user's model: no GPU, no CUDA build, no memory for weights."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.errors import UntraceableError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.trace.self_check import problems
from bsfind.simulation.trace.tracer import Tracer

MODELS = Path(__file__).parents[1] / "models" / "traced.py"
TOKENS = InputSpec(name="x", shape=(5,), dtype="int64", low=0, high=1000)
A100 = GPU_SPECS["a100"]


def workload(attribute: str, *shape: int, **settings: Any) -> Workload:
    spec = settings.pop("spec", None) or InputSpec(shape=shape, dtype="float32")
    return Workload(target=f"{MODELS}:{attribute}", inputs=(spec,), **settings)


def traced(attribute: str, *shape: int, batch_size: int = 6, **settings: Any) -> Any:
    with Tracer(workload(attribute, *shape, **settings), "fp32", A100) as tracer:
        return tracer.program(batch_size, 2), tracer.notes


def test_torch_behaves_as_the_tracer_takes_for_granted() -> None:
    assert problems() == []


def test_torch_is_as_before_when_the_tracer_is_closed() -> None:
    available = torch.cuda.is_available()
    traced("AsksForCuda", 8)
    assert torch.cuda.is_available() == available
    assert torch.ones(3).sum().item() == 3.0
    assert torch.empty(2, device="meta").device.type == "meta"
    x = torch.ones(3, requires_grad=True)
    (x * 2 + x * 3).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [5.0] * 3


def test_a_model_that_hard_codes_cuda() -> None:
    program, notes = traced("AsksForCuda", 8)
    assert notes == {}
    assert [event for event in program.load_events if event >= 0] == [
        8 * 8 * 4,
        8 * 4,
        8 * 8,
        8 * 4,
    ]


@pytest.mark.parametrize("precision", ["fp32", "amp-fp16"])
def test_the_backward_pass_asks_as_well(precision: str) -> None:
    with Tracer(workload("AsksForCudaInBackward", 8), precision, A100) as tracer:
        assert tracer.program(4, 2).trial_events
        assert tracer.notes == {}


def test_values_of_masks_lengths_and_indices_are_real() -> None:
    program, notes = traced("BranchesOnValues", 4)
    assert notes == {}
    assert program.trial_events


def test_a_shape_that_depends_on_activations_follows_from_steps_with_values() -> None:
    program, notes = traced("ShapedByActivations", 4)
    assert program.trial_events
    assert list(notes) == ["value_shapes"]


def test_a_value_that_nobody_knows_is_assumed_and_noted() -> None:
    _, notes = traced("ReadsAnActivation", 4)
    assert [code.partition(":")[0] for code in notes] == ["value_assumed"]


@pytest.mark.parametrize(
    ("attribute", "codes"), [("CustomOperator", ["custom_operators"]), ("CustomVersion", [])]
)
def test_operators_of_other_libraries_are_noted_where_they_compute(
    attribute: str, codes: list[str]
) -> None:
    _, notes = traced(attribute, 4)
    assert list(notes) == codes


def test_an_operator_without_a_model_is_named() -> None:
    with pytest.raises(UntraceableError, match="bsfind_tests::only_on_cuda") as caught:
        traced("CustomKernel", 4)
    assert caught.value.hint


def test_constructors_read_small_tensors() -> None:
    program, notes = traced("ReadsInItsConstructor", 4)
    assert notes == {}
    sizes = [event for event in program.load_events if event >= 0]
    assert sorted(sizes) == sorted([4, *[64, 16] * 3])


def test_tied_weights_are_allocated_once() -> None:
    program, _ = traced("Tied", spec=TOKENS)
    assert [event for event in program.load_events if event >= 0] == [1000 * 64 * 4]


def test_seven_thousand_million_parameters_take_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Tracer(workload("Huge", 16384), "amp-bf16", A100) as tracer:
        assert tracer.parameters > 6.9e9
        program = tracer.program(4, 2)
    unit = 1 if sys.platform == "darwin" else 1024
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    assert grown < 600 << 20
    allocator = CachingAllocator(DeviceMemory(1 << 40))
    replayed = program.replay(allocator, program.load(allocator))
    assert replayed.peak_allocated_bytes > 4 * 4 * 6.9e9  # weights, gradients, two of AdamW


@pytest.mark.parametrize(
    ("attribute", "shape"), [("Contrastive", (64,)), ("ReadsInItsConstructor", (4,))]
)
@pytest.mark.parametrize("precision", ["fp32", "amp-fp16"])
def test_other_batch_sizes_follow_from_a_few(
    attribute: str, shape: tuple[int, ...], precision: str
) -> None:
    with Tracer(workload(attribute, *shape), precision, A100) as tracer:
        for batch_size in (5, 11, 37, 41):
            tracer.program(batch_size, 3)
        assert tracer._traces[3, None].scale
        for batch_size in (2, 64, 333):
            scaled = tracer.program(batch_size, 3)
            exact = tracer.program(batch_size, 3, exact=True)
            assert (scaled.traced_steps, exact.traced_steps) == (0, 3)
            assert scaled.trial_events == exact.trial_events
            assert scaled.marks == exact.marks


def test_a_step_that_changes_with_the_batch_is_traced_anew() -> None:
    with Tracer(workload("ChangesWithTheBatch", 64), "fp32", A100) as tracer:
        sizes = {n: len(tracer.program(n, 2).trial_events) for n in (5, 11, 23, 37, 47)}
        assert tracer.program(11, 2).traced_steps == tracer.program(7, 2).traced_steps == 2
        assert tracer.program(41, 2).traced_steps == 0
    assert sizes[5] == sizes[11] < sizes[23] == sizes[37] == sizes[47]


def test_what_a_trial_leaves_in_the_model_is_in_each_trial() -> None:
    with Tracer(workload("KeepsSomething", 64), "fp32", A100) as tracer:
        programs = [tracer.program(batch_size, 2) for batch_size in (4, 5, 6)]
    assert all(400_000 in program.trial_events for program in programs)


def test_inference_keeps_no_activations_and_takes_cudas_way() -> None:
    with Tracer(workload("Tied", spec=TOKENS, mode="infer"), "amp-fp16", A100) as tracer:
        program = tracer.program(50, 2)
    allocator = CachingAllocator(DeviceMemory(1 << 40))
    replayed = program.replay(allocator, program.load(allocator))
    scores = 50 * 5 * 1000 * 2
    assert replayed.resident_bytes[0] == replayed.resident_bytes[1]
    assert scores < replayed.activation_bytes < 2 * scores + (9 << 20)  # and cuBLAS's workspace
    assert "aten::mm" in program.operators


def test_an_instance_is_found_as_it_was_by_each_precision() -> None:
    for precision in ("fp32", "amp-fp16", "fp32"):
        with Tracer(workload("instance", 8), precision, A100) as tracer:
            program = tracer.program(4, 2)
        sizes = [event for event in program.load_events if event >= 0]
        assert sizes == [8 * 8 * 4, 8 * 4, *[8 * 4] * 2, *[8 * 4] * 2, 8, 8 * 8 * 4, 8 * 4]


def test_many_random_numbers_of_the_host_repeat_some() -> None:
    asked = Workload(
        target=f"{MODELS}:MeanOfPixels", batch_fn=f"{MODELS}:images_of_the_host", loss="mean"
    )
    with Tracer(asked, "fp32", A100) as tracer:
        program = tracer.program(40, 2)
    assert 40 * 256 * 256 * 4 in program.trial_events

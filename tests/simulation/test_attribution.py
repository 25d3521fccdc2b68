"""Who allocated: traces of real models, with an observer that attributes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
from tests.exhaustive import one_in
from tests.models.blocks import Block
from tests.simulation.corpus import by_name
from tests.simulation.gpu_specs import GPU_SPECS
from torch import nn
from torch.utils.checkpoint import checkpoint

from bsfind.inputs import parse_input_shape
from bsfind.inspect.attribution import Attribution
from bsfind.inspect.compose import AttributedTrial, categories_of, compose
from bsfind.inspect.inspection import Composition
from bsfind.settings import Workload
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.trace.program import Program, Source
from bsfind.simulation.trace.tracer import Tracer
from bsfind.units import GIB, MIB

A100 = GPU_SPECS["a100"]
HERE = "tests.simulation.test_attribution"


def traced(
    workload: Workload, precision: str, batch_size: int, attribution: Attribution | None
) -> tuple[Program, list[Source]]:
    torch.manual_seed(0)  # sparse gradients are as large as indices are distinct
    sources: list[Source] = []
    with Tracer(workload, precision, A100, observer=attribution) as tracer:
        return tracer.program(batch_size, 3, sources=sources), sources


def fresh() -> CachingAllocator:
    return CachingAllocator(DeviceMemory(80 * GIB))


def trial_of(workload: Workload, precision: str = "fp32", batch_size: int = 4) -> AttributedTrial:
    attribution = Attribution()
    program, sources = traced(workload, precision, batch_size, attribution)
    return attribution.attributed(program, sources, trains=workload.mode == "train")


def inspected(workload: Workload, precision: str = "fp32", batch_size: int = 4) -> Composition:
    return compose(trial_of(workload, precision, batch_size), fresh())


# ------------------------------------------------------------- it adds up, and disturbs nothing

CASES = (
    *("resnet", "unet", "bert", "gpt", "lstm", "packed_gru", "t5", "dlrm", "sparse_embeddings"),
    *("message_passing", "c3d_channels_last", "gradient_penalty", "neural_ode", "muon", "adagrad"),
    *("adamw_fused", "accumulation", "ema", "lora", "distillation", "checkpoint_reentrant"),
    *("checkpoint_not_reentrant", "own_functions", "hooks", "lazy_layers", "gpt_inference"),
)


@pytest.mark.parametrize("name", one_in(3, CASES))
def test_the_sum_is_the_peak_of_the_replay(name: str) -> None:
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("an older torch")
    case = by_name(name)
    precision, batch_size = case.precisions[-1], case.batch_sizes[0]
    plain, _ = traced(case.workload, precision, batch_size, None)
    attribution = Attribution()
    program, sources = traced(case.workload, precision, batch_size, attribution)
    assert program.load_events == plain.load_events
    assert program.trial_events == plain.trial_events
    assert program.operators == plain.operators

    allocator = fresh()
    replayed = plain.replay(allocator, plain.load(allocator))
    trains = case.workload.mode == "train"
    found = compose(attribution.attributed(program, sources, trains=trains), fresh())
    assert found.allocated_bytes == replayed.peak_allocated_bytes
    assert found.peak_reserved_bytes == replayed.peak_reserved_bytes
    assert sum(found.categories.values()) == replayed.peak_allocated_bytes
    assert sum(share.total_bytes for share in found.modules) == replayed.peak_allocated_bytes
    for moment in found.timeline:
        assert sum(moment.categories.values()) == moment.allocated_bytes
    end = next(moment for moment in found.timeline if moment.at == "step_end")
    assert end.allocated_bytes == replayed.resident_bytes[found.step - 1]
    assert not set(end.categories) & {"activations", "outputs", "temporaries", "weight_casts"}


# ------------------------------------------------------------------------------ what things are


class Net(nn.Module):
    """Small weights, blocks of 512 bytes each; large activations."""

    def __init__(self, checkpointed: bool = False, reentrant: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.blocks = nn.ModuleList(Block(64) for _ in range(4))
        self.last = nn.Linear(64, 8)
        self.register_buffer("scale", torch.ones(8))
        self.checkpointed, self.reentrant = checkpointed, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            reentrant = self.reentrant
            x = checkpoint(block, x, use_reentrant=reentrant) if self.checkpointed else block(x)
        return self.last(x) * self.scale


class Lopsided(nn.Module):
    """`wide` has most of the weights, and makes activations that `act` keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(64, 64)
        self.wide = nn.Linear(64, 65536, bias=False)
        self.act = nn.GELU()
        self.head = nn.Linear(65536, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.wide(self.narrow(x))))


class Recovers(nn.Module):
    """Its child fails, and it goes on without."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = Failing()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with contextlib.suppress(ArithmeticError):
            self.failing(x)
        return torch.tanh(self.layer(x))


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError


class Functional(nn.Module):
    """`block` checkpoints a function that is no module."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.block = FunctionalBlock(reentrant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.first(x))


class FunctionalBlock(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x: torch.tanh(x) * 2, x, use_reentrant=self.reentrant)


def workload(attribute: str, *shape: int, **settings: object) -> Workload:
    inputs = (parse_input_shape(",".join(map(str, shape))),)
    return Workload(target=f"{HERE}:{attribute}", inputs=inputs, **settings)  # type: ignore[arg-type]


def rounded(sizes: Sequence[int]) -> int:
    return sum(-size // 512 * -512 for size in sizes)


def rounded_weights(model: nn.Module) -> int:
    return rounded([parameter.nbytes for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "arguments", "states"),
    [
        ("adamw", (), 2),
        ("sgd", (), 0),
        ("sgd", (("momentum", "0.9"),), 1),
        ("adagrad", (), 1),  # made by its constructor
        ("rmsprop", (), 1),
    ],
)
def test_parameters_gradients_and_optimizer_state(
    optimizer: str, arguments: tuple[tuple[str, str], ...], states: int
) -> None:
    found = inspected(workload("Net", 8, optimizer=optimizer, optimizer_args=arguments))
    end = found.timeline[-1]
    weights = rounded_weights(Net())
    assert end.at == "step_end"
    assert end.categories["parameters"] == found.categories["parameters"] == weights + 512
    assert end.categories["gradients"] == weights
    assert end.categories.get("optimizer_state", 0) == states * weights
    assert "kept" not in end.categories


@pytest.mark.parametrize(("optimizer", "step"), [("adamw", 2), ("sgd", 1)])
def test_inputs_are_what_was_asked_for_and_the_targets(optimizer: str, step: int) -> None:
    """Also in the first step, in which the loss makes them once it sees the output."""
    found = inspected(workload("Net", 8, loss="mse", optimizer=optimizer), batch_size=256)
    assert found.step == step
    assert found.categories["inputs"] == rounded([256 * 8 * 4, 256 * 8 * 4])


def test_activations_are_saved_by_autograd() -> None:
    batch_size = 4096
    found = inspected(workload("Net", 8, loss="mean"), batch_size=batch_size)
    forward_end = found.timeline[0]
    assert forward_end.at == "forward_end"
    # `first`; of each block the output of the ReLU, and the sum (`up` is saved nowhere); `last`.
    wide, narrow = batch_size * 256 * 4, batch_size * 64 * 4
    saved = forward_end.categories["activations"]
    assert saved == pytest.approx(narrow + 4 * (wide + narrow), rel=0.01)
    assert forward_end.categories.get("temporaries", 0) == 0


def test_weight_casts_are_half_of_the_weights_that_are_cast() -> None:
    plain = inspected(workload("Net", 8), batch_size=1024)
    cast = inspected(workload("Net", 8), "amp-bf16", batch_size=1024)
    assert "weight_casts" not in plain.categories
    weights = rounded([parameter.nbytes // 2 for parameter in Net().parameters()])
    forward_end = cast.timeline[0]
    # Not needed in the backward pass, and so gone by the end of the forward pass: biases, and the
    # first weight, since the inputs have no gradient.
    net = Net()
    biases = [p for p in net.parameters() if p.dim() == 1]
    gone = rounded([p.nbytes // 2 for p in (*biases, net.first.weight)])
    assert forward_end.categories["weight_casts"] == weights - gone
    by_path = {share.path: share.categories for share in cast.modules}
    assert any("weight_casts" in by_path[f"blocks.{index}.up"] for index in range(4))


CHECKPOINTED = {
    "reentrant": {"model_args": (("checkpointed", "True"), ("reentrant", "True"))},
    "non-reentrant": {"model_args": (("checkpointed", "True"),)},
    "bsfind's own": {"grad_checkpoint": True},
}


@pytest.mark.parametrize("how", CHECKPOINTED)
def test_checkpointing_lowers_activations(how: str) -> None:
    batch_size = 4096
    plain = inspected(workload("Net", 8), batch_size=batch_size)
    less = inspected(workload("Net", 8, **CHECKPOINTED[how]), batch_size=batch_size)
    assert less.categories["activations"] < 0.5 * plain.categories["activations"]


@pytest.mark.parametrize("how", CHECKPOINTED)
def test_what_is_recomputed_belongs_to_the_module_that_made_it_first(how: str) -> None:
    batch_size = 4096
    wide = batch_size * 256 * 4
    trial = trial_of(workload("Net", 8, **CHECKPOINTED[how]), batch_size=batch_size)
    end_of_first = trial.places("step_end")[0]
    recomputed: dict[str | None, dict[str, int]] = {}
    for allocation, category, (birth, _) in zip(
        trial.allocations, categories_of(trial), trial.lifetimes(), strict=True
    ):
        if allocation.origin == "recompute" and allocation.is_tensor and birth < end_of_first:
            nbytes = trial.events[birth]
            sums = recomputed.setdefault(allocation.module, {})
            sums[category] = sums.get(category, 0) + nbytes
    for index in range(4):
        # The ReLU, in the block's own code, makes what autograd keeps; `up` makes what it reads.
        assert recomputed[f"blocks.{index}"]["activations"] in (wide, wide + wide // 4)
        assert recomputed[f"blocks.{index}.up"] == {"temporaries": wide}
    assert all((path or "").startswith("blocks.") for path in recomputed)


def made_by(trial: AttributedTrial, operator: str) -> list[tuple[str, str | None]]:
    """Return in which part of the trial, and in which module, an operator allocated."""
    return [
        (allocation.origin, allocation.module)
        for allocation, (birth, _) in zip(trial.allocations, trial.lifetimes(), strict=True)
        if operator in trial.program.operators[birth]
    ]


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_a_function_is_recomputed_in_the_module_that_checkpoints_it(reentrant: bool) -> None:
    trial = trial_of(workload("Functional", 8, model_args=(("reentrant", str(reentrant)),)))
    made = [birth for birth in made_by(trial, "aten::tanh") if "backward" not in birth[0]]
    assert ("recompute", "block") in made
    assert set(made) == {("forward", "block"), ("recompute", "block")}


def test_a_module_that_fails_is_left_all_the_same() -> None:
    made = made_by(trial_of(workload("Recovers", 8)), "aten::tanh")
    assert ("forward", "") in made
    assert {module for _, module in made} == {""}


def test_the_largest_module_comes_first() -> None:
    found = inspected(workload("Lopsided", 64), batch_size=2)
    first = found.modules[0]
    weights = 64 * 65536 * 4
    assert (first.path, first.class_name) == ("wide", "Linear")
    assert first.categories["parameters"] == weights
    assert first.categories["optimizer_state"] == 2 * weights
    assert [share.total_bytes for share in found.modules] == sorted(
        (share.total_bytes for share in found.modules), reverse=True
    )


def test_activations_belong_to_the_module_that_made_them() -> None:
    batch_size = 512
    found = inspected(workload("Lopsided", 64), batch_size=batch_size)
    by_path = {share.path: share.categories for share in found.modules}
    assert found.phase == "backward"
    assert by_path["wide"]["activations"] == batch_size * 65536 * 4


def test_what_a_backward_pass_makes_belongs_to_the_module_it_goes_back_through() -> None:
    trial = trial_of(workload("Lopsided", 64))
    assert made_by(trial, "gelu_backward") == [("backward", "act")] * 3


def test_inference_holds_outputs() -> None:
    found = inspected(workload("Lopsided", 64, mode="infer"), batch_size=1024)
    assert not set(found.categories) & {"activations", "gradients", "optimizer_state"}
    end = next(moment for moment in found.timeline if moment.at == "forward_end")
    assert end.categories["outputs"] == 1024 * 4


def test_where_it_does_not_fit() -> None:
    trial = trial_of(workload("Lopsided", 64), batch_size=1024)
    found = compose(trial, CachingAllocator(DeviceMemory(200 * MIB)))
    assert found.failed is not None
    assert found.failed.tried_bytes == 1024 * 65536 * 4
    assert found.failed.category == "activations"
    assert (found.step, found.phase, found.module) == (1, "forward", "wide")
    assert sum(found.categories.values()) == found.allocated_bytes


def test_a_model_that_does_not_fit() -> None:
    trial = trial_of(workload("Lopsided", 64))
    found = compose(trial, CachingAllocator(DeviceMemory(8 * MIB)))
    assert found.failed is not None
    assert found.failed.category == "parameters"
    assert (found.step, found.phase, found.module) == (0, "load", "wide")

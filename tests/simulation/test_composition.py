"""What memory is made of, from events that are known: the pure part of `bsfind inspect`."""

from __future__ import annotations

from typing import Any

import pytest

from bsfind.inspect.compose import Allocation, AttributedTrial, Origin, categories_of, compose
from bsfind.inspect.inspection import CATEGORIES, Composition
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.trace.program import Program
from bsfind.units import MIB


class Writer:
    """Writes a trial down, event by event."""

    def __init__(self) -> None:
        self.load: list[int] = []
        self.trial: list[int] = []
        self.operators: list[str] = []
        self.marks: list[tuple[int, str]] = []
        self.allocations: list[Allocation] = []
        self.optional: dict[int, tuple[int, ...]] = {}

    def make(self, mib: int, origin: Origin, module: str | None = None, **more: Any) -> int:
        (self.load if origin == "load" else self.trial).append(mib * MIB)
        self.operators.append(f"aten::op{len(self.allocations)}")
        self.allocations.append(Allocation(origin, module, **more))
        return len(self.allocations) - 1

    def free(self, *blocks: int) -> None:
        for block in blocks:
            self.trial.append(-block - 1)
            self.operators.append("")

    def mark(self, name: str) -> None:
        self.marks.append((len(self.trial), name))

    def attributed(self, *, trains: bool = True) -> AttributedTrial:
        return AttributedTrial(
            program=Program(self.load, self.trial, self.operators, self.marks, self.optional),
            allocations=self.allocations,
            classes={"layer": "Linear"},
            trains=trains,
        )


def allocator(gib: float = 1.0) -> CachingAllocator:
    return CachingAllocator(DeviceMemory(int(gib * 1024) * MIB))


def one_step(writer: Writer) -> None:
    """A step of 4 MiB parameters: inputs 2, activations 8, temporaries 3 and 6, gradients 4."""
    writer.mark("forward_begin")
    batch = writer.make(2, "inputs")
    hidden = writer.make(3, "forward", "layer")
    kept = writer.make(8, "forward", "layer")
    writer.free(hidden)
    writer.mark("forward_end")
    scratch = writer.make(16, "backward", "layer", is_tensor=False)
    writer.free(scratch)
    flowing = writer.make(6, "backward", "layer")
    writer.make(4, "backward", "layer", role="gradients")
    writer.free(kept, flowing)
    writer.make(8, "optimizer", "layer")
    square = writer.make(4, "optimizer")
    writer.free(square, batch)
    writer.mark("step_end")


def test_every_block_has_the_category_that_its_life_tells() -> None:
    writer = Writer()
    writer.make(4, "load", "layer", role="parameters")
    writer.make(1, "load")
    one_step(writer)
    assert categories_of(writer.attributed()) == [
        *("parameters", "kept", "inputs", "temporaries", "activations", "workspace"),
        *("temporaries", "gradients", "optimizer_state", "temporaries"),
    ]


def test_inference_has_outputs_instead_of_activations() -> None:
    writer = Writer()
    writer.mark("forward_begin")
    writer.make(2, "inputs")
    writer.make(3, "forward")
    writer.mark("forward_end")
    writer.free(0, 1)
    writer.mark("step_end")
    assert categories_of(writer.attributed(trains=False)) == ["inputs", "outputs"]


def test_what_outlives_its_step_is_kept() -> None:
    writer = Writer()
    writer.mark("forward_begin")
    cached = writer.make(3, "forward")
    writer.mark("forward_end")
    leaked = writer.make(2, "backward")
    writer.mark("step_end")
    writer.free(cached, leaked)
    assert categories_of(writer.attributed()) == ["kept", "kept"]


def test_recomputed_activations_are_those_that_outlive_the_recomputation() -> None:
    writer = Writer()
    writer.mark("forward_begin")
    writer.mark("forward_end")
    lost = writer.make(1, "recompute", "layer")
    kept = writer.make(2, "recompute", "layer")
    writer.free(lost)
    writer.mark("recompute_end")
    writer.free(kept)
    writer.mark("step_end")
    assert categories_of(writer.attributed()) == ["temporaries", "activations"]


def composed(writer: Writer, gib: float = 1.0) -> Composition:
    found = compose(writer.attributed(), allocator(gib))
    assert sum(found.categories.values()) == found.allocated_bytes
    assert sum(share.total_bytes for share in found.modules) == found.allocated_bytes
    assert list(found.categories) == [c for c in CATEGORIES if c in found.categories]
    return found


def test_the_peak_and_what_it_is_made_of() -> None:
    writer = Writer()
    writer.make(4, "load", "layer", role="parameters")
    one_step(writer)
    found = composed(writer)
    assert found.allocated_bytes == 30 * MIB
    assert found.categories == {
        "parameters": 4 * MIB,
        "activations": 8 * MIB,
        "inputs": 2 * MIB,
        "workspace": 16 * MIB,
    }
    assert (found.step, found.phase, found.module, found.operator) == (
        *(1, "backward", "layer", "aten::op4"),
    )
    assert [(m.at, m.allocated_bytes // MIB) for m in found.timeline] == [
        *(("forward_end", 14), ("peak", 30), ("step_end", 16)),
    ]
    assert [(s.path, s.class_name, s.total_bytes // MIB) for s in found.modules] == [
        *(("layer", "Linear", 28), (None, None, 2)),
    ]
    assert Composition.from_json(found.to_json()) == found


def test_the_first_of_two_equal_peaks_counts() -> None:
    writer = Writer()
    writer.make(4, "load", "layer", role="parameters")
    for _ in range(2):
        writer.mark("forward_begin")
        block = writer.make(8, "forward", "layer")
        writer.mark("forward_end")
        writer.free(block)
        writer.mark("step_end")
    assert composed(writer).step == 1


def test_what_is_over_before_the_first_step_is_no_peak() -> None:
    writer = Writer()
    writer.make(4, "load", role="parameters")
    writer.free(writer.make(100, "setup"))
    one_step(writer)
    assert composed(writer).allocated_bytes == 30 * MIB


def test_a_workspace_that_stays_belongs_to_no_module() -> None:
    writer = Writer()
    writer.mark("forward_begin")
    writer.make(8, "forward", "layer", is_tensor=False)
    writer.mark("forward_end")
    writer.mark("step_end")
    found = composed(writer)
    assert [(share.path, share.categories) for share in found.modules] == [
        (None, {"workspace": 8 * MIB})
    ]
    assert found.module is None


@pytest.mark.parametrize(
    ("mib", "number", "step", "phase", "tried", "category"),
    [(2, 0, 0, "load", 4, "parameters"), (20, 4, 1, "backward", 16, "workspace")],
)
def test_out_of_memory(
    mib: int, number: int, step: int, phase: str, tried: int, category: str
) -> None:
    writer = Writer()
    writer.make(4, "load", "layer", role="parameters")
    one_step(writer)
    found = composed(writer, mib / 1024)
    assert found.failed is not None
    assert (found.step, found.phase, found.operator) == (step, phase, f"aten::op{number}")
    assert found.failed.tried_bytes == tried * MIB
    assert found.failed.category == category
    assert found.timeline[-1].at == "failure"
    assert Composition.from_json(found.to_json()) == found


def test_a_kernel_that_does_without_its_workspace_takes_none() -> None:
    writer = Writer()
    writer.make(4, "load", "layer", role="parameters")
    one_step(writer)
    place = writer.trial.index(16 * MIB)
    writer.trial[place] = 60 * MIB
    writer.optional[place] = ()
    found = composed(writer, 60 / 1024)
    assert found.failed is None
    assert "workspace" not in found.categories


def test_accumulated_gradients_show_the_forward_pass_before_the_peak() -> None:
    writer = Writer()
    writer.mark("forward_begin")
    for size in (8, 5):
        block = writer.make(size, "forward", "layer")
        writer.mark("forward_end")
        writer.free(writer.make(2 * (8 - size), "backward", "layer"), block)
    writer.mark("step_end")
    moments = composed(writer).timeline
    assert [(moment.at, moment.allocated_bytes // MIB) for moment in moments] == [
        *(("forward_end", 5), ("peak", 11), ("step_end", 0)),
    ]

"""Traces at three batch sizes tell those at others, or say that they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec
from bsfind.simulation.trace.program import program_of
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, MARK, RELEASE, Entry
from bsfind.simulation.trace.scaling import fit

GPU = GPU_SPECS["a100"]


def scratch_by_steps(call: Call, _: GpuSpec, trace: KernelTrace) -> None:
    """Take scratch memory from a threshold on: no polynomial of the batch size."""
    trace.outputs()
    if call.tensor("x").shape[0] > 100:
        trace.scratch(call.tensor("x").nbytes // 3)


def trace(batch_size: int, sizes: list[tuple[int, int, int]]) -> list[Entry]:
    """Return a trace whose allocations are polynomials (constant, slope, curve)."""
    entries: list[Entry] = [(MARK, "forward_begin")]
    for block, (constant, slope, curve) in enumerate(sizes):
        nbytes = constant + slope * batch_size + curve * batch_size**2
        entries.append((ALLOCATE, block, nbytes, "aten::empty"))
    spec = TensorSpec((batch_size, 7), (7, 1), torch.float32)
    call = Call("aten::x", "default", {"x": spec, "p": 1 / batch_size, "dim": [0]}, (spec,))
    last = len(sizes)
    entries.append((CALL, scratch_by_steps, call, ((last, 28 * batch_size),), "main", "aten::x"))
    entries += [(RELEASE, block) for block in range(last + 1)]
    return entries


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from((0, 0, 4))),
        max_size=5,
    ),
    st.integers(1, 5000),
)
def test_polynomials_and_rules_are_followed_exactly(
    sizes: list[tuple[int, int, int]], batch_size: int
) -> None:
    scaled = fit([(n, trace(n, sizes)) for n in (5, 11, 37)])
    assert scaled is not None
    ours = program_of([], scaled(batch_size), GPU)
    theirs = program_of([], trace(batch_size, sizes), GPU)
    assert ours.trial_events == theirs.trial_events
    assert ours.marks == theirs.marks


def changed(entry: int, value: Any) -> list[Entry]:
    entries = trace(37, [(10, 4, 0)])
    entries[entry] = value
    return entries


@pytest.mark.parametrize(
    "third",
    [
        trace(37, [(10, 4, 0)])[:-1],
        changed(1, (ALLOCATE, 0, 10 + 4 * 37, "aten::other")),
        changed(1, (ALLOCATE, 5, 10 + 4 * 37, "aten::empty")),
        changed(1, (RELEASE, 0)),
        changed(0, (MARK, "step_end")),
        changed(1, (ALLOCATE, 0, 11 + 4 * 37, "aten::empty")),
    ],
)
def test_another_structure_is_not_fitted(third: list[Entry]) -> None:
    first, second = trace(5, [(10, 4, 0)]), trace(11, [(10, 4, 0)])
    assert fit([(5, first), (11, second), (37, third)]) is None

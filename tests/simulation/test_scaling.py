"""Traces at a few batch sizes tell those at others, or say that they do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec
from bsfind.simulation.trace.program import program_of
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, MARK, RELEASE, Entry
from bsfind.simulation.trace.scaling import Traces, fit

GPU = GPU_SPECS["a100"]


def scratch_by_steps(call: Call, _: GpuSpec, trace: KernelTrace) -> None:
    """Take scratch memory from a threshold on: no polynomial of the batch size."""
    trace.outputs()
    if call.tensor("x").shape[0] > 100:
        trace.scratch(call.tensor("x").nbytes // 3)


def trace(batch_size: int, sizes: list[tuple[int, ...]]) -> list[Entry]:
    """Return a trace whose allocations are polynomials (constant, slope, curve …)."""
    nbytes = [sum(c * batch_size**power for power, c in enumerate(size)) for size in sizes]
    return trace_of(batch_size, nbytes)


def trace_of(batch_size: int, sizes: list[int]) -> list[Entry]:
    """Return a trace with allocations of these sizes."""
    entries: list[Entry] = [(MARK, "forward_begin")]
    for block, nbytes in enumerate(sizes):
        entries.append((ALLOCATE, block, nbytes, "aten::empty"))
    spec = TensorSpec((batch_size, 7), (7, 1), torch.float32)
    call = Call("aten::x", "default", {"x": spec, "p": 1 / batch_size, "dim": [0]}, (spec,))
    last = len(sizes)
    entries.append((CALL, scratch_by_steps, call, ((last, 28 * batch_size),), "main", "aten::x"))
    entries += [(RELEASE, block) for block in range(last + 1)]
    return entries


@given(
    st.lists(
        st.lists(st.integers(0, 10**6), min_size=1, max_size=4).map(tuple),
        max_size=5,
    ),
    st.integers(1, 5000),
)
def test_polynomials_and_rules_are_followed_exactly(
    sizes: list[tuple[int, ...]], batch_size: int
) -> None:
    def fitted(several: tuple[int, ...]) -> Callable[[int], list[Entry]] | None:
        return fit([(n, trace(n, sizes)) for n in several])

    scaled = fitted((5, 11, 37, 41, 233))
    assert scaled is not None
    degree = max((p for size in sizes for p, c in enumerate(size) if c), default=1)
    assert (fitted((5, 11, 37, 41)) is None) == (degree > 2)
    assert (fitted((5, 11, 37)) is None) == (degree > 1)
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


IRREGULAR: dict[str, Callable[[int], int]] = {
    "parity": lambda n: 4 * n + 1000 * (n % 2),
    "threshold": lambda n: 4 * n + (n >= 64) * 512,
    "padded": lambda n: 512 * -(-n // 64),
    "a third": lambda n: 512 * (n // 3),
    "root": lambda n: 512 * math.isqrt(n),
    "power of two": lambda n: 512 << (n - 1).bit_length(),
    "power of one and a half": lambda n: int(n**1.5) * 4,
    "falls": lambda n: 10**9 // n,
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_what_is_no_polynomial_is_traced_at_each_size(name: str) -> None:
    size = IRREGULAR[name]
    traces, traced = Traces(), []

    def at(batch_size: int, *, exact: bool = False) -> Sequence[Entry]:
        def make() -> Sequence[Entry]:
            traced.append(batch_size)
            return trace_of(batch_size, [size(batch_size)])

        entries, is_traced = traces.at(batch_size, make, exact=exact)
        assert is_traced == (batch_size in traced)
        return entries

    for batch_size in (5, 233, 275, 279, 280):
        at(batch_size, exact=True)
    for batch_size in (7, 100, 262, 300, 301, 4096, 4097):
        (_, allocated, *_) = at(batch_size)
        assert allocated == (ALLOCATE, 0, size(batch_size), "aten::empty")


@pytest.mark.parametrize("later", [36, 64, 1000])
def test_a_later_trace_contradicts_what_followed(later: int) -> None:
    traces = Traces()

    def at(batch_size: int, extra: int = 0, *, exact: bool = True) -> bool:
        made = trace_of(batch_size, [4 * batch_size + extra])
        return traces.at(batch_size, lambda: made, exact=exact)[1]

    assert all(at(batch_size) for batch_size in (5, 11, 37))
    assert not at(100, exact=False)
    at(later, 1)
    assert at(100, exact=False)
    assert not traces.scale


def test_half_of_all_pairs_is_a_polynomial() -> None:
    pairs = [(n, trace_of(n, [4 * (n * (n - 1) // 2)])) for n in (5, 11, 37, 41)]
    scaled = fit(pairs)
    assert scaled is not None
    assert scaled(100)[1] == (ALLOCATE, 0, 4 * 4950, "aten::empty")


@pytest.mark.parametrize(
    ("size", "batch_size"), [(lambda n: 4 * n - 18, 3), (lambda n: (n - 2) // 3, 42)]
)
def test_a_size_is_a_whole_number_of_bytes(size: Callable[[int], int], batch_size: int) -> None:
    traces = Traces()
    for n in (5, 11, 38, batch_size):
        entries, is_traced = traces.at(n, lambda n=n: trace_of(n, [size(n)]), exact=False)  # type: ignore[misc]
        assert is_traced
        assert entries == trace_of(n, [size(n)])


def test_sizes_that_do_not_follow_from_others_are_traced_once() -> None:
    traces, traced = Traces(), []

    def at(size: int) -> int:
        def trace() -> Any:
            traced.append(size)
            return [(RELEASE, 0)] * (size % 7 + 1)  # of other lengths: no structure in common

        return len(traces.at(size, trace, exact=False)[0])

    sizes = [2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233]
    assert [at(size) for size in sizes] == [size % 7 + 1 for size in sizes]
    assert traced == sizes
    assert not traces.scale
    for size in sizes[-4:]:
        at(size)
    assert traced == sizes
    at(2)  # long ago: not all are kept
    assert traced == [*sizes, 2]

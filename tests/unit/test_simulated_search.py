"""The search on a simulated device: exact, within the budget, and never called verified."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import pytest
from example_report import SETTINGS, predicted_report
from hypothesis import given
from hypothesis import strategies as st

from bsfind.records import DeviceInfo, PrecisionResult, Trial
from bsfind.search.events import Events
from bsfind.search.policy import Simulated
from bsfind.search.precision import PrecisionSearch
from bsfind.settings import SearchLimits
from bsfind.units import MIB, Headroom


class Replays:
    """Trials of a step that holds `fixed` bytes and `each` more for every sample."""

    recordings: ClassVar[dict[int, Any]] = {}
    model = None

    def __init__(self, capacity: int, fixed: int, each: int) -> None:
        self.capacity, self.fixed, self.each = capacity, fixed, each
        self.limits: list[int] = []

    def load(self) -> None:
        pass

    def check_time(self) -> None:
        pass

    def run(self, batch_size: int, steps: int | None = None) -> Trial:
        return self.run_within(batch_size, self.capacity, steps=steps or 3)

    def run_within(
        self, batch_size: int, limit_bytes: int, *, steps: int, grad_accum: int | None = None
    ) -> Trial:
        self.limits.append(limit_bytes)
        needed = self.fixed + self.each * batch_size
        if needed > limit_bytes:
            return Trial(batch_size=batch_size, status="oom", message="out of memory")
        # Reserved comes in segments: the guesses see steps.
        return Trial(
            batch_size=batch_size,
            status="ok",
            peak_allocated_bytes=needed,
            peak_reserved_bytes=min(-(-needed // (20 * MIB)) * 20 * MIB, limit_bytes),
            resident_bytes=self.fixed,
            activation_bytes=self.each * batch_size,
            steps=steps,
        )


def searched(replays: Replays, **limits: Any) -> tuple[PrecisionResult, PrecisionSearch]:
    device = dataclasses.replace(
        cast("DeviceInfo", predicted_report().device), capacity_bytes=replays.capacity
    )
    settings = dataclasses.replace(SETTINGS, limits=SearchLimits(**limits))
    search = PrecisionSearch("fp32", settings, device, cast("Any", replays), Simulated(), Events())
    return search.run(), search


@given(
    capacity=st.integers(1 << 30, 80 << 30),
    fixed=st.integers(0, 1 << 29),
    each=st.integers(1 << 17, 1 << 28),
    multiple=st.sampled_from([1, 8, 32]),
)
def test_both_sizes_are_exact(capacity: int, fixed: int, each: int, multiple: int) -> None:
    result, _ = searched(Replays(capacity, fixed, each), multiple_of=multiple, tolerance=0.05)
    largest = (capacity - fixed) // each // multiple * multiple
    if not largest:
        assert result.status == "nothing_fits"
        return
    assert result.max_batch_size == largest
    assert result.is_maximum_proven
    within = (capacity - int(capacity * 0.05) - fixed) // each // multiple * multiple
    assert result.recommended_batch_size == (within or None)


def test_the_recommended_size_was_replayed_within_the_budget() -> None:
    replays = Replays(8 << 30, 1 << 28, 50 * MIB)
    result, _ = searched(replays)
    budget = (8 << 30) - int((8 << 30) * 0.05)
    assert replays.limits[-1] == budget
    assert result.peak_reserved_bytes is not None
    assert result.peak_reserved_bytes <= budget
    assert result.recommended_batch_size in {t.batch_size for t in result.trials}


def test_nothing_that_did_not_run_is_verified() -> None:
    result, _ = searched(Replays(8 << 30, 1 << 28, 50 * MIB))
    assert result.recommended_batch_size is not None
    assert not result.verified
    assert result.confirmation is None
    assert result.samples_per_s is None


def test_without_headroom_the_largest_is_recommended() -> None:
    result, search = searched(Replays(8 << 30, 1 << 28, 50 * MIB), headroom=Headroom(bytes=0))
    assert result.recommended_batch_size == result.max_batch_size
    assert search.all_warnings == []


def test_the_smallest_size_that_was_asked_for() -> None:
    result, _ = searched(Replays(8 << 30, 1 << 28, 50 * MIB), min_batch_size=155)
    assert result.max_batch_size == 158
    assert result.recommended_batch_size is None
    assert result.message is not None
    assert "the headroom stays free" in result.message


def test_nothing_fits() -> None:
    result, _ = searched(Replays(1 << 28, 1 << 27, 1 << 28))
    assert result.status == "nothing_fits"


def test_the_fastest_is_not_known() -> None:
    _, search = searched(Replays(8 << 30, 1 << 28, 50 * MIB), objective="fastest")
    assert [warning.code for warning in search.all_warnings] == ["speed_unknown"]


@pytest.mark.parametrize("each", [1 << 20, 1 << 24, 1 << 28])
def test_a_search_takes_few_replays(each: int) -> None:
    replays = Replays(24 << 30, 1 << 29, each)
    searched(replays)
    assert len(replays.limits) <= 24

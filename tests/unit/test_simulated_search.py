"""The search on a simulated device: exact, within the budget, and never called verified."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import pytest
from example_report import SETTINGS, predicted_report
from hypothesis import given
from hypothesis import strategies as st

from bsfind.errors import TimeLimitError
from bsfind.records import DeviceInfo
from bsfind.results import PrecisionResult
from bsfind.search.events import Events
from bsfind.search.neighbours import MOST
from bsfind.search.policy import Simulated
from bsfind.search.precision import PrecisionSearch
from bsfind.settings import SearchLimits
from bsfind.trial import Trial
from bsfind.units import MIB, Headroom


class Replays:
    """Trials of a step that holds `fixed` bytes and `each` more for every sample.

    Args:
        capacity: of the device, bytes.
        fixed: bytes that every step holds.
        each: bytes that it holds for each sample.
        even: bytes that it holds more, or less, for each sample of an even batch. Sizes follow from the
            first ones, which are odd, until one that is traced contradicts them.
        late: bytes that the sixteenth step holds more for each sample. It is not seen where the third
            step stands for it.
    """

    recordings: ClassVar[dict[int, Any]] = {}
    refusals: ClassVar[dict[int, Any]] = {}
    busy_s = 0.0
    slowest_s = 0.0
    slowest_size = 1
    sizes_follow = False
    model = None

    def __init__(
        self, capacity: int, fixed: int, each: int, *, even: int = 0, late: int = 0
    ) -> None:
        self.capacity, self.fixed, self.each = capacity, fixed, each
        self.even, self.late = even, late
        self.limits: list[int] = []
        self.traced: list[tuple[int, int]] = []
        self._follows = True

    def load(self) -> None:
        pass

    def check_time(self) -> None:
        pass

    def run(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        return self.run_within(batch_size, self.capacity, steps=steps or 3, exact=exact)

    def run_within(
        self,
        batch_size: int,
        limit_bytes: int,
        *,
        steps: int,
        grad_accum: int | None = None,
        exact: bool = False,
        is_beside: bool = False,
    ) -> Trial:
        self.limits.append(limit_bytes)
        is_traced = exact or not self._follows or len(self.traced) < 3
        traced_steps = steps if exact or not self.traced else self.traced[0][1]
        needed = self.fixed + self.each * batch_size
        if is_traced:
            self.traced.append((batch_size, traced_steps))
            if batch_size % 2 == 0:
                needed += self.even * batch_size
                self._follows = self._follows and not self.even
        if traced_steps >= 16:
            needed += self.late * batch_size
        traced_steps *= is_traced
        if needed > limit_bytes:
            return Trial(
                batch_size=batch_size,
                status="oom",
                message="out of memory",
                traced_steps=traced_steps,
            )
        # Reserved comes in segments: the guesses see steps.
        return Trial(
            batch_size=batch_size,
            status="ok",
            peak_allocated_bytes=needed,
            peak_reserved_bytes=min(-(-needed // (20 * MIB)) * 20 * MIB, limit_bytes),
            resident_bytes=self.fixed,
            activation_bytes=self.each * batch_size,
            steps=steps,
            traced_steps=traced_steps,
        )


def searched(replays: Replays, **limits: Any) -> tuple[PrecisionResult, PrecisionSearch]:
    device = dataclasses.replace(
        cast("DeviceInfo", predicted_report().device), capacity_bytes=replays.capacity
    )
    batch_size = limits.pop("batch_size", None)
    settings = dataclasses.replace(SETTINGS, limits=SearchLimits(**limits), batch_size=batch_size)
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
    # Both ends and the recommended size are traced once more; sizes below it are replayed too.
    assert len(replays.limits) <= 24 + 3 + MOST


class SameMemory(Replays):
    """A step that ignores its batch."""

    def run_within(
        self, batch_size: int, limit_bytes: int, *, exact: bool = False, **more: Any
    ) -> Trial:
        trial = super().run_within(1, limit_bytes, exact=exact, **more)
        return dataclasses.replace(trial, batch_size=batch_size)


class Falling(Replays):
    """A step with a buffer that is divided by the batch size."""

    def run_within(
        self, batch_size: int, limit_bytes: int, *, exact: bool = False, **more: Any
    ) -> Trial:
        self.fixed = (40 << 30) // batch_size
        return super().run_within(batch_size, limit_bytes, exact=exact, **more)


class Untraceable(Replays):
    """A step that cannot be traced from 1000 samples on."""

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        if batch_size < 1000:
            return super().run_within(batch_size, limit_bytes, **more)
        return Trial(
            batch_size=batch_size, status="error", error_kind="untraceable", message="needs values"
        )


class Slow(Replays):
    """A step whose traces take long, and are of no use for other sizes."""

    def __init__(self, *args: int, seconds: float) -> None:
        super().__init__(*args, even=MIB)
        self.seconds = seconds
        self._follows = False

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        self.busy_s += self.seconds
        return super().run_within(batch_size, limit_bytes, **more)


def codes(search: PrecisionSearch) -> set[str]:
    return {warning.code for warning in search.all_warnings}


def test_a_size_that_cannot_be_traced_ends_the_search_upward() -> None:
    result, search = searched(Untraceable(8 << 30, 1 << 28, MIB))
    assert (result.status, result.max_batch_size) == ("ok", 999)
    assert result.recommended_batch_size == 999
    assert not result.is_maximum_proven
    (warning,) = search.all_warnings
    assert warning.code == "untraceable"
    assert "batch size 1,000 cannot be traced, smaller ones can: needs values" in warning.message


def test_a_size_that_cannot_be_traced_is_no_matter_where_memory_is_the_limit() -> None:
    result, _ = searched(Untraceable(8 << 30, 1 << 28, 50 * MIB))
    assert (result.max_batch_size, result.is_maximum_proven) == (158, True)


def test_slow_traces_leave_the_rest_to_the_tolerance() -> None:
    def traces(seconds: float) -> tuple[PrecisionResult, int]:
        slow = Slow(80 << 30, 1 << 28, 5 * MIB, seconds=seconds)
        return searched(slow)[0], len(slow.traced)

    exact, many = traces(0.1)
    result, few = traces(10.0)
    assert exact.max_batch_size is not None
    assert result.max_batch_size is not None
    assert result.is_maximum_proven
    assert 0.99 * exact.max_batch_size < result.max_batch_size <= exact.max_batch_size
    assert few < 0.7 * many
    assert traces(35.0 / many)[1] < many  # the last halvings would take longer than that


class SlowWithSize(Replays):
    """A step whose traces take the longer the larger the batch is; other sizes follow from three of them."""

    def __init__(self, *args: int, seconds_each: float, follows: bool) -> None:
        super().__init__(*args)
        self.seconds_each, self._follows = seconds_each, follows

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        known = len(self.traced)
        trial = super().run_within(batch_size, limit_bytes, **more)
        seconds = self.seconds_each * batch_size * (len(self.traced) - known)
        if self.busy_s and seconds > self.slowest_s:
            self.slowest_s, self.slowest_size = seconds, batch_size
        self.busy_s += seconds
        return trial


def test_where_a_larger_size_would_take_longer_yet_small_ones_tell_first() -> None:
    replays = SlowWithSize(80 << 30, 1 << 28, 5 * MIB, seconds_each=0.002, follows=True)
    result, search = searched(replays)
    exact, _ = searched(Replays(80 << 30, 1 << 28, 5 * MIB))
    assert result.max_batch_size == exact.max_batch_size
    sizes = [size for size, _ in replays.traced]
    assert min(sizes[1], sizes[2]) < 50
    assert replays.busy_s < 120
    assert "trial_timeout" not in codes(search)


class FollowsAfterThree(Replays):
    """A step whose traces take long, from three of which others follow."""

    def __init__(self, *args: int, seconds: float) -> None:
        super().__init__(*args)
        self.seconds_each = seconds

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        known = len(self.traced)
        trial = super().run_within(batch_size, limit_bytes, **more)
        seconds = self.seconds_each * (len(self.traced) - known)
        if self.busy_s and seconds > self.slowest_s:
            self.slowest_s, self.slowest_size = seconds, batch_size
        self.busy_s += seconds
        self.sizes_follow = self._follows and len(self.traced) >= 3
        return trial


def test_a_search_goes_on_where_the_sizes_that_are_left_follow_from_slow_traces() -> None:
    slow = FollowsAfterThree(80 << 30, 1 << 28, 5 * MIB, seconds=9.0)
    result, search = searched(slow)
    exact, _ = searched(Replays(80 << 30, 1 << 28, 5 * MIB))
    assert result.max_batch_size == exact.max_batch_size
    assert result.recommended_batch_size == exact.recommended_batch_size
    assert result.is_maximum_proven
    assert len(slow.traced) == 3
    assert "trial_timeout" not in codes(search)


class TooLong(Replays):
    """A step that is too long to be traced at several sizes."""

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        raise TimeLimitError("a step is too long", hint="`check` traces one size")


def test_a_step_that_is_too_long_ends_the_search_and_says_so() -> None:
    result, search = searched(TooLong(8 << 30, 1 << 28, MIB))
    assert (result.status, result.max_batch_size) == ("unfinished", None)
    assert [trial.status for trial in result.trials] == ["timeout"]
    (warning,) = search.all_warnings
    assert (warning.code, warning.hint) == ("trial_timeout", "`check` traces one size")
    assert "batch size 5 was given up: a step is too long" in warning.message


def test_a_search_whose_traces_take_long_ends_and_says_so() -> None:
    replays = SlowWithSize(80 << 30, 1 << 28, 5 * MIB, seconds_each=0.002, follows=False)
    result, search = searched(replays)
    assert result.max_batch_size is not None
    assert not result.is_maximum_proven
    assert "trial_timeout" in codes(search)
    assert result.recommended_batch_size is not None
    assert len(replays.traced) < 12


def test_ten_minutes_of_tracing_end_the_search() -> None:
    result, search = searched(Slow(80 << 30, 1 << 28, 5 * MIB, seconds=400.0))
    assert result.max_batch_size is not None
    assert not result.is_maximum_proven
    assert result.recommended_batch_size is not None
    (warning,) = [w for w in search.all_warnings if w.code == "trial_timeout"]
    assert "tracing has taken 10 min" in warning.message


def test_memory_that_is_the_same_at_every_size_is_told() -> None:
    _, search = searched(SameMemory(8 << 30, 1 << 28, MIB))
    assert codes(search) == {"batch_ignored"}
    _, search = searched(Replays(8 << 30, 1 << 28, MIB))
    assert not codes(search)


def test_memory_that_falls_with_the_batch_size_is_told() -> None:
    result, search = searched(Falling(4 << 30, 0, MIB))
    assert result.max_batch_size is not None
    assert result.max_batch_size > 4000
    assert codes(search) == {"memory_falls"}


def test_both_ends_and_the_recommended_size_are_traced() -> None:
    replays = Replays(8 << 30, 1 << 28, 50 * MIB)
    result, _ = searched(replays)
    recommended, largest = result.recommended_batch_size, result.max_batch_size
    assert {(recommended, 20), (largest, 3), (result.smallest_failed_batch_size, 3)} <= {
        *replays.traced
    }
    assert len(replays.traced) <= 7
    (shown,) = [trial for trial in result.trials if trial.batch_size == recommended]
    assert (shown.steps, shown.traced_steps) == (20, 20)


@pytest.mark.parametrize("headroom", [0, 1 << 29])
def test_a_later_step_that_holds_more_is_met(headroom: int) -> None:
    capacity, fixed = 8 << 30, 1 << 28
    result, _ = searched(
        Replays(capacity, fixed, 5 * MIB, late=2 * MIB), headroom=Headroom(bytes=headroom)
    )
    assert result.max_batch_size == (capacity - fixed) // (7 * MIB)
    assert result.recommended_batch_size == (capacity - headroom - fixed) // (7 * MIB)


def test_a_check_traces_every_step() -> None:
    replays = Replays(8 << 30, 1 << 28, 5 * MIB, late=2 * MIB)
    (trial,) = searched(replays, batch_size=1500)[0].trials
    assert trial.status == "oom"
    assert replays.traced == [(1500, 20)]


def test_sizes_that_do_not_follow_are_traced() -> None:
    """Even batches need more than the odd ones that were traced first."""
    capacity, fixed = 8 << 30, 1 << 28
    replays = Replays(capacity, fixed, 5 * MIB, even=2 * MIB)
    result, _ = searched(replays)
    assert result.max_batch_size is not None
    assert (result.max_batch_size, 3) in replays.traced
    assert (result.smallest_failed_batch_size, 3) in replays.traced
    needed = fixed + result.max_batch_size * (7 - 2 * (result.max_batch_size % 2)) * MIB
    assert needed <= capacity


def test_larger_sizes_that_need_less_are_found() -> None:
    capacity, fixed = 8 << 30, 1 << 28
    result, search = searched(Replays(capacity, fixed, 5 * MIB, even=-2 * MIB))
    largest = (capacity - fixed) // (3 * MIB) // 2 * 2
    assert (result.max_batch_size, result.smallest_failed_batch_size) == (largest, largest + 2)
    assert result.is_maximum_proven
    (warning,) = search.all_warnings
    assert warning.code == "memory_not_monotonic"
    assert "only multiples of 2 were searched" in warning.message

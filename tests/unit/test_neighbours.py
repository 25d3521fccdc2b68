"""Whether the sizes just below the recommended one run: on devices with islands."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from typing import Any, ClassVar, cast

import pytest
from example_report import SETTINGS, example_report, predicted_report
from hypothesis import given
from hypothesis import strategies as st
from test_simulated_search import Replays, searched

from bsfind.errors import TimeLimitError
from bsfind.records import DeviceInfo, ModelInfo
from bsfind.report.sentences import sentences
from bsfind.results import Neighbours as Found
from bsfind.results import PrecisionResult
from bsfind.search.accepted_sizes import AcceptedSizes, Multiples, Series
from bsfind.search.events import Events
from bsfind.search.neighbours import MOST, near_below
from bsfind.search.policy import Measured, Simulated
from bsfind.search.precision import PrecisionSearch
from bsfind.search.time_budget import TimeBudget
from bsfind.search.trials import TrialRunner
from bsfind.settings import SearchLimits
from bsfind.trial import Trial
from bsfind.units import MIB
from bsfind.worker.client import TrialAnswer


@given(size=st.integers(1, 2**31), of=st.sampled_from([1, 7, 8, 1000]), least=st.integers(0, 2000))
def test_what_counts_as_near(size: int, of: int, least: int) -> None:
    sizes = Multiples(of)
    size = sizes.at_most(size)
    near = near_below(size, sizes, least)
    assert near == sorted(set(near), reverse=True)
    assert all(n % of == 0 and max(1, least) <= n < size for n in near)
    nearest = [size - of * n for n in range(1, 5) if size - of * n >= max(1, least)]
    assert near[:2] == nearest[:2]
    within = len(range(max(1, least, size - int(0.03 * size)), size, 1)) // of
    if within >= 4:
        assert near[:4] == nearest
    assert all(n >= 0.97 * size for n in near[2:])
    assert len(near) <= MOST
    if within > 200:  # a sample: evenly spaced down to the end
        assert len(near) > MOST - 2
        gaps = [a - b for a, b in itertools.pairwise(near[4:-1])]
        assert max(gaps) <= 2 * min(gaps)
        assert near[-1] - of < max(0.97 * size, least)


def test_all_of_few_sizes_are_near() -> None:
    assert near_below(400, Multiples(1), 1) == list(range(399, 387, -1))
    assert near_below(10, Multiples(1), 1) == [9, 8]
    assert near_below(1, Multiples(1), 1) == []
    assert near_below(4096, Series(1, 2), 1) == [2048, 1024]
    refused = AcceptedSizes()
    refused.record(Trial(batch_size=9, status="error", error_kind="refused", message="no"))
    assert near_below(10, refused, 1) == [8, 7]


EACH = 10 * MIB
CAPACITY = 8 << 30
BUDGET = CAPACITY - int(CAPACITY * 0.05)
LARGEST = BUDGET // EACH
"""The largest size within the budget, without islands."""


class Islands(Replays):
    """A step for which some sizes do not fit within the budget though larger ones do.

    Args:
        holes: these sizes.
        beyond: holes that are left on the whole device too.
    """

    def __init__(self, holes: Collection[int], beyond: Collection[int] = ()) -> None:
        super().__init__(CAPACITY, 0, EACH)
        self.holes, self.beyond = holes, beyond
        self.replayed: list[int] = []

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        self.replayed.append(batch_size)
        holes = self.beyond if limit_bytes == CAPACITY else self.holes
        limit = 0 if batch_size in holes else limit_bytes
        return super().run_within(batch_size, limit, **more)

    def fits(self, batch_size: int) -> bool:
        return batch_size <= LARGEST and batch_size not in self.holes


def test_where_all_run_nothing_moves() -> None:
    result, _ = searched(Islands(()))
    assert result.recommended_batch_size == LARGEST
    below = tuple(range(LARGEST - int(0.03 * LARGEST), LARGEST))
    assert result.neighbours == Found(ran=below)


@pytest.mark.parametrize("depth", [5, 9, 22])
def test_a_failure_just_below_moves_the_recommendation_down(depth: int) -> None:
    hole = LARGEST - depth
    result, _ = searched(Islands({hole}))
    assert result.recommended_batch_size == hole - 1
    assert result.neighbours is not None
    assert result.neighbours.moved_from == LARGEST
    assert result.neighbours.failed == (hole,)
    assert result.neighbours.all_tried
    (shown,) = [t for t in result.trials if t.batch_size == hole - 1]
    assert (shown.steps, shown.traced_steps) == (20, 20)  # confirmed as the first was


def test_a_failure_that_is_not_near_is_left_alone() -> None:
    result, _ = searched(Islands({LARGEST - 30}))
    assert result.recommended_batch_size == LARGEST
    assert result.neighbours is not None
    assert result.neighbours.moved_from is None


@given(holes=st.sets(st.integers(LARGEST - 60, LARGEST), max_size=12))
def test_what_is_recommended_has_no_failures_just_below(holes: set[int]) -> None:
    replays = Islands(holes)
    result, _ = searched(replays)
    recommended, found = result.recommended_batch_size, result.neighbours
    assert recommended is not None
    assert found is not None
    assert replays.fits(recommended)
    assert all(map(replays.fits, found.ran))
    assert not any(map(replays.fits, found.failed))
    near = near_below(recommended, Multiples(1), 1)
    if found.all_tried:
        assert all(map(replays.fits, near))
        assert set(near) <= set(found.ran)
    else:
        assert not all(map(replays.fits, near))
        assert found.failed
        assert found.moved_from is None


def test_neighbours_are_multiples() -> None:
    top = LARGEST // 8 * 8
    replays = Islands({top - 8, top - 1, top - 17})
    result, _ = searched(replays, multiple_of=8)
    assert result.recommended_batch_size == top - 16
    assert result.neighbours is not None
    assert result.neighbours.failed == (top - 8,)
    assert all(size % 8 == 0 for size in replays.replayed)


def test_no_size_without_failures_leaves_the_first_and_says_so() -> None:
    replays = Islands(set(range(LARGEST - 95, LARGEST, 10)) - {LARGEST})
    result, _ = searched(replays)
    found, recommended = result.neighbours, result.recommended_batch_size
    assert found is not None
    assert recommended is not None
    assert replays.fits(recommended)
    assert recommended > LARGEST - 10
    assert found.moved_from is None
    assert not found.all_tried
    assert len(found.failed) > 5
    assert len(replays.replayed) < 150
    (line,) = [line for line in _lines(result) if "just below" in line]
    assert line.startswith("Of the sizes just below it, ")
    assert line.endswith(" others do not fit within the budget.")


class SlowIslands(Islands):
    """Each size is traced by itself, which takes long."""

    def __init__(self, holes: Collection[int], seconds: float) -> None:
        super().__init__(holes)
        self.seconds = seconds
        self._follows = False

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        self.busy_s += self.seconds
        self.slowest_s = self.seconds
        return super().run_within(batch_size, limit_bytes, **more)


def test_slow_traces_are_tried_as_far_as_there_is_time() -> None:
    result, _ = searched(SlowIslands((), 2.0))
    assert result.neighbours is not None
    assert not result.neighbours.all_tried
    assert 1 <= len(result.neighbours.ran) <= 5
    (line,) = [line for line in _lines(result) if "just below" in line]
    assert line.startswith("Whether all sizes just below it fit too is not known: ")
    recommended = result.recommended_batch_size or 0
    assert result.neighbours.ran[-1] == recommended - 1


def test_a_check_has_no_neighbours() -> None:
    result, _ = searched(Islands(()), batch_size=100)
    assert result.neighbours is None


def _lines(result: PrecisionResult) -> list[str]:
    report = predicted_report()
    assert report.recommendation is not None
    shown = dataclasses.replace(
        next(r for r in report.results if r.precision == report.recommendation.precision),
        neighbours=result.neighbours,
    )
    others = [r for r in report.results if r.precision != shown.precision]
    return sentences(dataclasses.replace(report, results=(*others, shown)))


def test_nothing_is_said_where_nothing_is_odd() -> None:
    found = PrecisionResult(precision="fp32", status="ok", neighbours=Found(ran=(398, 399)))
    assert not [line for line in _lines(found) if "just below" in line]


def test_what_moved_is_said() -> None:
    moved = Found(ran=(948, 949), failed=(950,), moved_from=951)
    found = PrecisionResult(precision="fp32", status="ok", neighbours=moved)
    assert "951 fits within the budget too, but 950 below it does not." in _lines(found)


# Measured.


class Card:
    """Trials on a card on which some sizes do not fit within the budget though larger ones do."""

    recordings: ClassVar[dict[int, Any]] = {}
    refusals: ClassVar[dict[int, Any]] = {}
    busy_s = slowest_s = 0.0
    slowest_size = 1
    model = None

    def __init__(self, holes: Collection[int] = ()) -> None:
        self.holes = holes
        self.within: list[tuple[int, int, bool]] = []

    def load(self) -> None:
        pass

    def check_time(self) -> None:
        pass

    def run(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        return self._trial(batch_size, CAPACITY, steps or 3)

    def run_within(
        self,
        batch_size: int,
        limit_bytes: int,
        *,
        steps: int,
        is_beside: bool,
        **_: Any,
    ) -> Trial:
        self.within.append((batch_size, steps, is_beside))
        return self._trial(batch_size, 0 if batch_size in self.holes else limit_bytes, steps)

    def _trial(self, batch_size: int, limit_bytes: int, steps: int) -> Trial:
        needed = batch_size * EACH
        if needed > limit_bytes:
            return Trial(batch_size=batch_size, status="oom", message="out of memory")
        return Trial(
            batch_size=batch_size,
            status="ok",
            peak_allocated_bytes=needed,
            peak_reserved_bytes=needed,
            resident_bytes=0,
            activation_bytes=needed,
            steps=steps,
            step_time_s=1.0,
            samples_per_s=float(batch_size),
        )


def measured(card: Card, *, tries_smaller: bool = True, **limits: Any) -> PrecisionResult:
    device = dataclasses.replace(
        cast("DeviceInfo", example_report().device), capacity_bytes=CAPACITY
    )
    settings = dataclasses.replace(SETTINGS, limits=SearchLimits(**limits))
    policy = Measured(tries_smaller=tries_smaller)
    return PrecisionSearch("fp32", settings, device, cast("Any", card), policy, Events()).run()


def test_a_measured_answer_takes_one_more_trial() -> None:
    card = Card()
    result = measured(card)
    size = result.recommended_batch_size
    assert size is not None
    assert card.within[-2:] == [(size, 20, False), (size - 1, 3, True)]
    assert [is_beside for *_, is_beside in card.within].count(True) == 1
    assert result.neighbours == Found(ran=(size - 1,))


def test_a_measured_answer_moves_down_too() -> None:
    size = measured(Card()).recommended_batch_size
    assert size is not None
    card = Card({size - 1})
    result = measured(card)
    assert result.recommended_batch_size == size - 2
    assert result.neighbours == Found(ran=(size - 3,), failed=(size - 1,), moved_from=size)
    assert result.confirmation is not None
    assert result.confirmation.batch_size == size - 2
    assert (size - 2, 20, False) in card.within


def test_a_measured_neighbour_is_a_multiple() -> None:
    card = Card()
    result = measured(card, multiple_of=8)
    assert result.neighbours == Found(ran=((result.recommended_batch_size or 0) - 8,))


def test_a_launched_command_is_not_started_for_it() -> None:
    card = Card()
    result = measured(card, tries_smaller=False)
    assert not any(is_beside for *_, is_beside in card.within)
    assert result.neighbours is None


class OutOfTime(Card):
    """The time budget ends with the confirmation."""

    def check_time(self) -> None:
        if self.within:
            raise TimeLimitError("time is over")

    def run_within(self, batch_size: int, limit_bytes: int, **more: Any) -> Trial:
        if more["is_beside"]:
            self.check_time()
        return super().run_within(batch_size, limit_bytes, **more)


def test_an_answer_stands_where_time_ends_before_its_neighbours() -> None:
    result = measured(OutOfTime())
    assert result.status == "ok"
    assert result.confirmation is not None
    assert result.recommended_batch_size == result.confirmation.batch_size
    assert result.neighbours == Found(ran=(), all_tried=False)
    line = "Whether all sizes just below it fit too is not known: none was tried in the time there was."
    assert line in _lines(result)


class Pool:
    """Counts the processes that are started; a trial leaves memory behind in them, or does not."""

    inputs: ClassVar[tuple[Any, ...]] = ()
    assumptions = output = None

    def __init__(self, *, is_clean: bool) -> None:
        self.is_clean = is_clean
        self.taken = 0

    def take(self, variables: object = None) -> Pool:
        self.taken += 1
        return self

    def prepare(self) -> None:
        pass

    expect_one_more = prepare

    def open(self, *_: object) -> None:
        pass

    limit_memory = open

    def load(self, *_: object) -> ModelInfo:
        return ModelInfo(parameters=1, optimizer="AdamW", model_bytes=4)

    def run_trial(self, batch_size: int, steps: int, *_: object, **__: object) -> TrialAnswer:
        trial = Trial(batch_size=batch_size, status="ok", steps=steps)
        return TrialAnswer(trial=trial, is_clean=self.is_clean, recording=None, kind=None)


@pytest.mark.parametrize(
    ("is_clean", "limit", "processes"), [(True, 100, 1), (False, 100, 2), (True, 99, 2)]
)
def test_a_neighbour_runs_in_the_process_of_the_confirmation(
    is_clean: bool, limit: int, processes: int
) -> None:
    pool = Pool(is_clean=is_clean)
    clock = TimeBudget(10.0, None)
    runner = TrialRunner(SETTINGS, "fp32", cast("Any", pool), clock, keeps_worker=False)
    runner.run_within(10, 100, steps=20)
    assert runner.run_within(9, limit, steps=3, is_beside=True).batch_size == 9
    assert pool.taken == processes
    runner.run_within(9, limit, steps=20)  # another confirmation
    assert pool.taken == processes + 1


# Rows of `--compare`.


def beside(replays: Replays, plain: PrecisionResult) -> tuple[PrecisionResult, PrecisionSearch]:
    device = dataclasses.replace(
        cast("DeviceInfo", predicted_report().device), capacity_bytes=replays.capacity
    )
    settings = dataclasses.replace(SETTINGS, limits=SearchLimits(), remedy="sgd")
    search = PrecisionSearch(
        *("fp32", settings, device, cast("Any", replays), Simulated(), Events()), plain=plain
    )
    return search.run(), search


NOTHING = PrecisionResult(precision="fp32", status="ok")


def less(search: PrecisionSearch) -> list[str]:
    return [w.message for w in search.all_warnings if w.code == "compared_less"]


def test_a_lighter_row_does_not_end_below_an_island_that_the_heavier_found() -> None:
    plain, _ = searched(Islands(()))
    top = CAPACITY // EACH
    assert (plain.max_batch_size, plain.recommended_batch_size) == (top, LARGEST)
    # Its own searches end below: of the sizes that they would try, none fits.
    within, beyond = range(LARGEST - 200, LARGEST - 30), range(top - 200, top)
    alone, _ = beside(Islands((*within, LARGEST - 5), beyond), NOTHING)
    assert (alone.max_batch_size or 0) < top
    result, search = beside(Islands(within, beyond), plain)
    assert result.max_batch_size == top
    assert result.recommended_batch_size == LARGEST
    assert not less(search)


def test_a_row_that_shows_less_says_why() -> None:
    plain, _ = searched(Islands(()))
    heavier = Replays(CAPACITY, 1 << 29, EACH)
    result, search = beside(heavier, plain)
    assert result.max_batch_size == (CAPACITY - (1 << 29)) // EACH
    assert less(search) == [
        f"fp32 with sgd: batch size {CAPACITY // EACH} runs without it, and not with it: out of memory"
    ]


def test_a_row_whose_recommendation_moved_below_says_so() -> None:
    plain, _ = searched(Islands(()))
    hole = LARGEST - 1
    result, search = beside(Islands({hole}), plain)
    assert result.recommended_batch_size == LARGEST - 2
    assert less(search) == [
        f"fp32 with sgd: batch size {LARGEST} runs without it, and with it {hole}, just below {LARGEST}, "
        "did not fit the budget"
    ]


class Flushing(Replays):
    """A step for which the allocator flushes its cache above a size within the budget, at each step."""

    def __init__(self, largest: int, retries: int = 10) -> None:
        super().__init__(CAPACITY, 0, EACH)
        self.largest, self.retries = largest, retries

    def run_within(self, batch_size: int, limit_bytes: int, *, steps: int, **more: Any) -> Trial:
        trial = super().run_within(batch_size, limit_bytes, steps=steps, **more)
        if trial.status != "ok" or limit_bytes == CAPACITY or batch_size <= self.largest:
            return trial
        return dataclasses.replace(
            trial, num_alloc_retries=2 * self.retries, steady_alloc_retries=self.retries
        )


def test_a_row_that_gave_way_to_a_smaller_size_says_so() -> None:
    plain, _ = searched(Replays(CAPACITY, 0, EACH))
    result, search = beside(Flushing(760), plain)
    assert 740 < (result.recommended_batch_size or 0) <= 760
    assert less(search) == [
        f"fp32 with sgd: batch size {LARGEST} runs without it, and with it too, but the allocator flushes "
        f"its cache 10 times in the last 10 of 20 steps there, and 0 times at {result.recommended_batch_size}"
    ]


def test_a_row_that_would_give_way_from_a_size_that_is_steady_does_not() -> None:
    """Its own search begins above the plain size, where the cache is flushed, and gives way to far less."""
    plain = PrecisionResult(
        precision="fp32", status="ok", max_batch_size=819, recommended_batch_size=LARGEST - 4
    )
    replays = Flushing(LARGEST - 4)
    alone, _ = beside(replays, NOTHING)
    assert (alone.recommended_batch_size or 0) < LARGEST - 4
    result, search = beside(replays, plain)
    assert result.recommended_batch_size == LARGEST - 4
    assert not less(search)

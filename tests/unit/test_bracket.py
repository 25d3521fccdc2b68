"""The search keeps its promises whatever the trials say and whatever it is told to guess."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsfind.search.bracket import Bracket
from bsfind.search.estimate import line_through_peaks
from bsfind.trial import Trial

GIB = 1 << 30


def no_estimate(trials: Sequence[Trial]) -> int | None:
    return None


def run(
    fits: Callable[[int], bool],
    *,
    smallest: int = 1,
    largest: int = 2**31 - 1,
    tolerance: float = 0.005,
    estimate: Callable[[Sequence[Trial]], int | None] = no_estimate,
) -> Bracket:
    search = Bracket(smallest=smallest, largest=largest, tolerance=tolerance, estimate=estimate)
    asked: set[int] = set()
    while (batch_size := search.next()) is not None:
        assert smallest <= batch_size <= largest
        assert batch_size not in asked
        asked.add(batch_size)
        assert len(asked) <= 6 + 5 * math.log2(largest), "not logarithmic"
        search.record(Trial(batch_size=batch_size, status="ok" if fits(batch_size) else "oom"))
    return search


def tolerated(maximum: int, tolerance: float) -> int:
    return max(1, int(tolerance * maximum))


@given(
    maximum=st.integers(1, 2**31 - 2),
    tolerance=st.sampled_from([0.0, 0.001, 0.005, 0.05]),
    error=st.floats(0.2, 5.0),
)
def test_finds_the_maximum_within_the_tolerance_whatever_the_guess(
    maximum: int, tolerance: float, error: float
) -> None:
    search = run(
        lambda n: n <= maximum, tolerance=tolerance, estimate=lambda _: max(1, int(maximum * error))
    )
    assert search.best is not None
    assert maximum - search.best.batch_size < tolerated(maximum, tolerance) or (
        search.best.batch_size == maximum
    )
    assert search.is_proven


@given(maximum=st.integers(1, 2**31 - 2))
def test_tolerance_zero_is_exact_without_any_guess(maximum: int) -> None:
    search = run(lambda n: n <= maximum, tolerance=0.0)
    assert search.best is not None
    assert search.best.batch_size == maximum
    assert search.smallest_failed == maximum + 1


@given(data=st.data(), largest=st.integers(1, 10**6), tolerance=st.floats(0, 0.1))
@settings(max_examples=300)
def test_arbitrary_trials_and_guesses(data: st.DataObject, largest: int, tolerance: float) -> None:
    """Non-monotone answers and nonsense guesses: it ends, and its answer has run."""
    smallest = data.draw(st.integers(1, largest))
    ran: set[int] = set()

    def fits(n: int) -> bool:
        answer = data.draw(st.booleans())
        if answer:
            ran.add(n)
        return answer

    search = run(
        fits,
        smallest=smallest,
        largest=largest,
        tolerance=tolerance,
        estimate=lambda _: data.draw(st.none() | st.integers(-5, 2 * largest)),
    )
    if search.best is None:
        assert not ran
    else:
        assert search.best.batch_size == max(ran)
        if search.smallest_failed is not None:
            assert search.smallest_failed > search.best.batch_size


@given(maximum=st.integers(30, 10**6), off=st.floats(-0.002, 0.002))
def test_a_good_guess_costs_four_trials_and_one_failure(maximum: int, off: float) -> None:
    guess = maximum + int(off * maximum)
    search = run(lambda n: n <= maximum, estimate=lambda _: guess)
    statuses = [trial.status for trial in search.trials]
    assert len(statuses) <= (4 if guess == maximum else 5)
    assert statuses.count("oom") <= (1 if guess <= maximum else 2)


def linear_trial(n: int, *, fixed: int, slope: int, capacity: int) -> Trial:
    peak = fixed + slope * n
    if peak > capacity:
        return Trial(batch_size=n, status="oom")
    return Trial(
        batch_size=n,
        status="ok",
        peak_allocated_bytes=peak,
        peak_reserved_bytes=peak,
        resident_bytes=fixed,
        activation_bytes=slope * n,
    )


@given(maximum=st.integers(8, 5000), fixed=st.integers(0, 10 * GIB))
def test_linear_peaks_cost_four_trials(maximum: int, fixed: int) -> None:
    capacity = 24 * GIB
    slope = (capacity - fixed) // maximum
    search = Bracket(
        smallest=1,
        largest=10**9,
        tolerance=0.005,
        estimate=lambda trials: line_through_peaks(trials, capacity),
    )
    while (n := search.next()) is not None:
        search.record(linear_trial(n, fixed=fixed, slope=slope, capacity=capacity))
    exact = (capacity - fixed) // slope
    assert search.best is not None
    assert exact - search.best.batch_size < tolerated(exact, 0.005) or (
        search.best.batch_size == exact
    )
    assert len(search.trials) <= 5
    assert sum(trial.status == "oom" for trial in search.trials) <= 1


def test_everything_fails() -> None:
    search = run(lambda _: False)
    assert search.best is None
    # Far above once more: the memory of some steps falls with the batch size.
    assert [trial.batch_size for trial in search.trials] == [5, 2, 1, 320, 40]
    assert search.is_proven


def test_limits_are_tried_and_prove_the_maximum() -> None:
    search = run(lambda _: True, largest=96)
    assert search.best is not None
    assert search.best.batch_size == 96
    assert search.is_proven
    assert search.smallest_failed is None


def test_never_below_the_smallest() -> None:
    search = run(lambda _: False, smallest=64)
    assert [trial.batch_size for trial in search.trials] == [64]


def test_batch_norm_refusing_one_sample_is_no_obstacle() -> None:
    search = run(lambda n: 2 <= n <= 3)
    assert search.best is not None
    assert search.best.batch_size == 3


def test_a_timeout_ends_the_search_without_proof() -> None:
    search = Bracket(smallest=1, largest=100, tolerance=0.0, estimate=no_estimate)
    assert search.next() == 5
    search.record(Trial(batch_size=5, status="ok"))
    assert search.next() == 10
    search.record(Trial(batch_size=10, status="timeout"))
    assert search.next() is None
    assert not search.is_proven


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch size"):
        Bracket(smallest=5, largest=4, tolerance=0.0, estimate=no_estimate)


def searched(largest: int, expected: int | None, tolerance: float = 0.005) -> Bracket:
    """Bracket for a maximum that nothing but the expectation tells of."""
    search = Bracket(
        smallest=1,
        largest=1 << 30,
        tolerance=tolerance,
        estimate=lambda _: None,
        expected=expected,
    )
    while (batch_size := search.next()) is not None:
        search.record(Trial(batch_size=batch_size, status="ok" if batch_size <= largest else "oom"))
    return search


@given(st.integers(1, 100_000))
def test_what_was_rightly_expected_takes_two_trials(largest: int) -> None:
    search = searched(largest, expected=largest)
    assert search.is_proven
    assert len(search.trials) <= 2
    assert search.best is not None
    assert largest - search.best.batch_size <= max(1, 0.005 * largest)


@given(st.integers(2, 100_000), st.integers(1, 200_000))
def test_what_was_wrongly_expected_costs_a_few_trials(largest: int, expected: int) -> None:
    search = searched(largest, expected)
    assert search.is_proven
    assert search.best is not None
    assert search.best.batch_size <= largest
    assert len(search.trials) <= len(searched(largest, None).trials) + 22


@pytest.mark.parametrize("off", [0.97, 0.985, 1.015, 1.03])
def test_a_slightly_wrong_expectation_is_better_than_none(off: float) -> None:
    assert len(searched(1000, expected=int(1000 * off)).trials) <= 8


def test_probes_move_away_from_a_wrong_expectation_in_growing_steps() -> None:
    below = [trial.batch_size for trial in searched(700, expected=1000).trials]
    assert below[:5] == [998, 994, 964, 819, 409]
    above = [trial.batch_size for trial in searched(3000, expected=1000).trials]
    assert above[:6] == [998, 1002, 1033, 1162, 1743, 3486]


@given(cap=st.integers(1, 10**6), maximum=st.integers(1, 10**7), first=st.integers(1, 10**6))
def test_the_search_ends_at_the_size_that_is_delivered(cap: int, maximum: int, first: int) -> None:
    """Also where a size counts as run at first, as a replay of one that is never delivered does."""
    search = Bracket(
        smallest=1, largest=2**31 - 1, tolerance=0.0, estimate=no_estimate, first=first
    )
    number = 0
    while (batch_size := search.next()) is not None:
        number += 1
        assert number < 200
        is_short = batch_size > cap and (number > 3 or batch_size % 2 == 0)
        search.record(
            Trial(
                batch_size=batch_size,
                status="error",
                error_kind="short_batch",
                delivered_batch_size=cap,
            )
            if is_short
            else Trial(batch_size=batch_size, status="ok" if batch_size <= maximum else "oom")
        )
    assert search.best is not None
    if any(trial.delivered_batch_size for trial in search.trials):
        assert search.best.batch_size <= cap
    if search.best.batch_size <= cap:
        assert search.best.batch_size == min(cap, maximum)
        assert search.is_proven


@given(least=st.integers(6, 320), maximum=st.integers(320, 10**6))
def test_memory_that_falls_with_the_batch_size_at_first(least: int, maximum: int) -> None:
    search = run(lambda n: least <= n <= maximum, tolerance=0.0)
    assert search.best is not None
    assert search.best.batch_size == maximum

"""Estimates of the largest size: from a prediction until trials contradict it, then from the trials."""

from __future__ import annotations

import pytest

from bsfind.results import PrecisionResult
from bsfind.search.bracket import Bracket
from bsfind.search.estimate import Estimate, line_through_peaks
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.trial import Trial
from bsfind.units import GIB, MIB

CAPACITY, BUDGET = 10 * GIB, 9 * GIB
EACH = 10 * MIB


def ran(batch_size: int) -> Trial:
    return Trial(
        batch_size=batch_size,
        status="ok",
        peak_allocated_bytes=EACH * batch_size,
        peak_reserved_bytes=EACH * batch_size,
    )


def estimate(maximum: int | None = None, recommended: int | None = None) -> Estimate:
    predicted = PrecisionResult(
        precision="fp32",
        status="ok",
        max_batch_size=maximum,
        recommended_batch_size=recommended,
    )
    return Estimate(CAPACITY, {}, AllocatorSettings(), predicted if maximum else None)


def searched(*sizes: int, failed: int | None = None) -> Bracket:
    bracket = Bracket(smallest=1, largest=10_000, tolerance=0.0, estimate=lambda _: None)
    for size in sizes:
        bracket.record(ran(size))
    if failed is not None:
        bracket.record(Trial(batch_size=failed, status="oom"))
    return bracket


def test_a_prediction_is_expected_before_anything_runs() -> None:
    assert estimate(1000, 900).expected == 1000
    assert estimate().expected is None


@pytest.mark.parametrize(
    ("largest", "failed", "expected"),
    [
        (1000, 1001, 900),
        (998, 1003, 900),  # the prediction is inside of the bracket
        (980, 981, 880),  # it was too large, by 20
        (1100, 1101, 900),  # it was too small: what it recommends fits
    ],
)
def test_the_recommended_size_is_as_wrong_as_the_maximum(
    largest: int, failed: int, expected: int
) -> None:
    bracket = searched(500, largest, failed=failed)
    assert estimate(1000, 900).within_budget(BUDGET, bracket) == expected


def test_without_a_prediction_the_peaks_tell() -> None:
    bracket = searched(100, 500)
    assert estimate().within_budget(BUDGET, bracket) == BUDGET // EACH
    assert estimate().maximum(bracket.trials) == CAPACITY // EACH


def test_no_estimate_is_below_what_ran() -> None:
    assert estimate().maximum([ran(100), ran(2000)]) == 2000


def test_peaks_that_do_not_grow_tell_nothing() -> None:
    same = [Trial(batch_size=n, status="ok", peak_allocated_bytes=GIB) for n in (1, 2)]
    assert line_through_peaks(same, CAPACITY) is None
    assert line_through_peaks([], CAPACITY) is None

"""From trials to one number and its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.results import PrecisionResult
from bsfind.search.accepted_sizes import Multiples
from bsfind.search.recommend import (
    best_that_leaves,
    recommend,
    speed_up,
    step_down,
)
from bsfind.search.throughput import SATURATION, next_throughput_probe, saturation
from bsfind.trial import Trial


def trial(batch_size: int, *, peak: int | None = None, speed: float | None = None) -> Trial:
    return Trial(batch_size=batch_size, status="ok", peak_reserved_bytes=peak, samples_per_s=speed)


def result(precision: str, batch_size: int | None, speed: float | None = None) -> PrecisionResult:
    return PrecisionResult(
        precision=precision,
        status="ok" if batch_size else "nothing_fits",
        recommended_batch_size=batch_size,
        samples_per_s=speed,
    )


@given(n=st.integers(1, 10**6), attempt=st.integers(1, 20))
def test_stepping_down_goes_down_and_never_below_zero(n: int, attempt: int) -> None:
    after = step_down(n, attempt)
    assert 0 <= after < n
    assert step_down(n, attempt + 1) <= after


def test_steps_down_double() -> None:
    assert [step_down(1000, attempt) for attempt in (1, 2, 3)] == [995, 990, 980]
    assert step_down(3, 1) == 2
    assert step_down(1, 1) == 0


def test_the_best_that_leaves_the_headroom() -> None:
    oom = dataclasses.replace(trial(48, peak=90), status="oom")
    trials = [trial(8, peak=20), trial(32, peak=80), trial(40, peak=99), oom, trial(36)]
    assert best_that_leaves(trials, 100, Multiples(1)) == trials[2]
    assert best_that_leaves(trials, 99, Multiples(1)) == trials[2]
    assert best_that_leaves(trials, 98, Multiples(1)) == trials[1]
    assert best_that_leaves(trials, 100, Multiples(16)) == trials[1]
    assert best_that_leaves(trials, 19, Multiples(1)) is None
    assert best_that_leaves([], 100, Multiples(1)) is None


def test_saturation_is_the_smallest_within_two_percent() -> None:
    trials = [
        trial(8, speed=500),
        trial(64, speed=981),
        trial(16, speed=979),
        trial(256, speed=1000),
    ]
    assert saturation(trials) == trials[1]
    assert saturation([*trials, trial(4)]) == trials[1]
    assert saturation([trial(4)]) is None
    assert saturation([]) is None


def probe_all(
    speed: Callable[[int], float], largest: int, **limits: Any
) -> tuple[list[int], Trial]:
    trials = [trial(largest, speed=speed(largest))]
    probes = []
    while (n := next_throughput_probe(trials, largest, **limits)) is not None:
        probes.append(n)
        trials.append(trial(n, speed=speed(n)))
        assert len(probes) < 64
    best = saturation(trials)
    assert best is not None
    return probes, best


def test_probing_halves_until_throughput_falls() -> None:
    probes, best = probe_all(lambda n: min(n, 100), 1000, smallest=1, sizes=Multiples(1))
    assert probes == [500, 250, 125, 62]
    assert best.batch_size == 125


@given(
    largest=st.integers(1, 10**6),
    smallest=st.integers(1, 100),
    multiple=st.integers(1, 64),
    knee=st.integers(1, 10**6),
)
def test_probes_stay_within_the_limits(
    largest: int, smallest: int, multiple: int, knee: int
) -> None:
    largest = max(largest, smallest, multiple)
    probes, best = probe_all(
        lambda n: float(min(n, knee)), largest, smallest=smallest, sizes=Multiples(multiple)
    )
    assert len(set(probes)) == len(probes)
    assert all(smallest <= n < largest for n in probes)
    assert all(n % multiple == 0 for n in probes)
    assert min(best.batch_size, knee) >= SATURATION * min(largest, knee)


def test_no_probe_without_times() -> None:
    assert next_throughput_probe([trial(64)], 64, smallest=1, sizes=Multiples(1)) is None


def test_speed_up_is_relative_to_fp32_or_else_tf32() -> None:
    fp32, tf32, amp = result("fp32", 8, 100), result("tf32", 8, 200), result("amp-bf16", 16, 300)
    assert speed_up(amp, [amp, tf32, fp32]) == pytest.approx(3.0)
    assert speed_up(tf32, [fp32, tf32]) == pytest.approx(2.0)
    assert speed_up(fp32, [fp32, tf32, amp]) is None
    assert speed_up(amp, [tf32, amp]) == pytest.approx(1.5)
    assert speed_up(amp, [result("fp32", 8), tf32, amp]) == pytest.approx(1.5)
    assert speed_up(amp, [amp]) is None
    assert speed_up(result("bf16", 8), [fp32]) is None


@pytest.mark.parametrize(
    ("results", "objective", "answer", "reason"),
    [
        ([], "largest", None, ""),
        ([result("fp32", None)], "largest", None, ""),
        (
            [result("fp32", 8, 10)],
            "largest",
            ("fp32", 8),
            "the largest batch that leaves the headroom free",
        ),
        (
            [result("fp32", 8, 10), result("amp-bf16", 6, 25)],
            "largest",
            ("amp-bf16", 6),
            "the largest batch that leaves the headroom free; 2.5 x the samples per second of fp32",
        ),
        (
            [result("fp32", 8, 30), result("amp-bf16", 16, 25)],
            "largest",
            ("fp32", 8),
            "the largest batch that leaves the headroom free; "
            "the most samples per second of 2 precisions",
        ),
        (
            [result("fp32", None), result("amp-bf16", 6, 25)],
            "fastest",
            ("amp-bf16", 6),
            "the smallest batch within 2 % of the best samples per second",
        ),
        (
            [result("fp32", 8, 30), result("amp-bf16", 16)],
            "largest",
            ("amp-bf16", 16),
            "the largest batch that leaves the headroom free; the largest of 2 precisions",
        ),
        (
            [result("amp-fp16", 8, 30), result("bf16", 8, 31)],
            "largest",
            ("bf16", 8),
            "the largest batch that leaves the headroom free; "
            "the most samples per second of 2 precisions",
        ),
    ],
)
def test_recommendations(
    results: list[PrecisionResult], objective: str, answer: tuple[str, int] | None, reason: str
) -> None:
    recommendation = recommend(results, objective, None)
    if answer is None:
        assert recommendation is None
    else:
        assert recommendation is not None
        assert (recommendation.precision, recommendation.batch_size) == answer
        assert recommendation.reason == reason

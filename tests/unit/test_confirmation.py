"""Which size holds: many steps within the budget, no retries without end, no leak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from bsfind.errors import TimeLimitError
from bsfind.search.accepted_sizes import AcceptedSizes
from bsfind.search.confirm import Confirmation
from bsfind.search.policy import Measured
from bsfind.settings import SearchLimits
from bsfind.trial import Leak, Trial
from bsfind.units import GIB

BUDGET = 8 * GIB


class Runner:
    """Runs whatever a function of the batch size says."""

    def __init__(self, answer: Callable[[int], Trial]) -> None:
        self._answer = answer
        self.asked: list[tuple[int, int, int, int | None]] = []

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
        self.asked.append((batch_size, limit_bytes, steps, grad_accum))
        return self._answer(batch_size)

    def check_time(self) -> None:
        pass


def confirmation(
    answer: Callable[[int], Trial],
    *,
    is_everything: bool = False,
    searched: Sequence[int] = (),
    world_size: int = 1,
    **limits: Any,
) -> tuple[Confirmation, Runner]:
    runner = Runner(answer)
    sizes = AcceptedSizes(limits.get("multiple_of", 1))
    for batch_size in searched:
        sizes.record(ran(batch_size))
    return (
        Confirmation(
            "fp32",
            SearchLimits(**limits),
            sizes,
            BUDGET,
            cast("Any", runner),
            lambda _: None,
            is_everything=is_everything,
            reductions=Measured.reductions,
            world_size=world_size,
        ),
        runner,
    )


def ran(batch_size: int, steady: int = 0) -> Trial:
    return Trial(
        batch_size=batch_size,
        status="ok",
        num_alloc_retries=3,
        steady_alloc_retries=steady,
        steps=20,
    )


def up_to(largest: int) -> Callable[[int], Trial]:
    return lambda n: ran(n) if n <= largest else Trial(batch_size=n, status="oom")


def test_the_size_runs_for_many_steps_within_the_budget() -> None:
    confirmed, runner = confirmation(up_to(100), confirm_steps=50)
    assert confirmed.confirm(100) == ran(100)
    assert runner.asked == [(100, BUDGET, 50, None)]
    assert confirmed.warnings == []


def test_a_size_that_does_not_run_gives_way() -> None:
    confirmed, runner = confirmation(up_to(970))
    trial = confirmed.confirm(1000)
    assert trial is not None
    assert 940 <= trial.batch_size <= 970
    assert [size for size, *_ in runner.asked] == sorted(
        {s for s, *_ in runner.asked}, reverse=True
    )
    assert confirmed.warnings == []  # with headroom, the guess of the first size was only that


def test_without_headroom_a_size_that_gives_way_is_told() -> None:
    confirmed, _ = confirmation(up_to(999), is_everything=True)
    assert confirmed.confirm(1000) == ran(995)
    assert [warning.code for warning in confirmed.warnings] == ["confirmation_failed"]


def test_a_size_gives_way_to_one_at_which_the_allocator_reaches_a_steady_state() -> None:
    confirmed, _ = confirmation(lambda n: ran(n, steady=0 if n <= 985 else 17))
    trial = confirmed.confirm(1000)
    assert trial is not None
    assert 940 <= trial.batch_size <= 985
    assert confirmed.warnings == []


@pytest.mark.parametrize("settles", [0, 900])
def test_without_a_steady_size_nearby_the_largest_stands_with_a_warning(settles: int) -> None:
    confirmed, runner = confirmation(lambda n: ran(n, steady=0 if n <= settles else 17))
    assert confirmed.confirm(1000) == ran(1000, steady=17)
    (warning,) = confirmed.warnings
    assert warning.code == "alloc_retries"
    assert "keeps flushing its cache (17 retries in the last 10 of 20 steps)" in warning.message
    assert min(size for size, *_ in runner.asked) >= 940


def test_many_retries_are_worth_a_larger_reduction() -> None:
    confirmed, _ = confirmation(lambda n: ran(n, steady=0 if n <= 900 else 80))
    trial = confirmed.confirm(1000)
    assert trial is not None
    assert 750 <= trial.batch_size <= 900
    assert confirmed.warnings == []


def test_of_sizes_without_a_steady_state_one_with_few_retries_is_taken() -> None:
    confirmed, runner = confirmation(lambda n: ran(n, steady=10 if n <= 985 else 80))
    assert confirmed.confirm(1000) == ran(980, steady=10)
    assert [warning.code for warning in confirmed.warnings] == ["alloc_retries"]
    assert min(size for size, *_ in runner.asked) >= 940


def test_a_leak_ends_it() -> None:
    leaking = Trial(
        batch_size=100, status="error", leak=Leak(bytes_per_step=1 << 20, lasts_steps=300)
    )
    confirmed, runner = confirmation(lambda _: leaking)
    assert confirmed.confirm(100) is None
    assert confirmed.leaking == leaking
    assert len(runner.asked) == 1


def test_what_takes_too_long_is_told() -> None:
    def slow(_: int) -> Trial:
        raise TimeLimitError("no answer after 10 min")

    confirmed, runner = confirmation(slow)
    assert confirmed.confirm(100) is None
    (warning,) = confirmed.warnings
    assert warning.code == "confirmation_failed"
    assert "took too long" in warning.message
    assert "nothing is recommended" in warning.message
    assert confirmed.has_failed
    assert len(runner.asked) > 1


def test_what_runs_out_of_memory_late_is_given_up_in_large_steps_and_told() -> None:
    def grows(n: int) -> Trial:
        return ran(n) if n <= 400 else Trial(batch_size=n, status="oom", steps=3)

    confirmed, runner = confirmation(grows, searched=[1000])
    trial = confirmed.confirm(1000)
    assert trial is not None
    assert 250 <= trial.batch_size <= 400
    assert len(runner.asked) <= 6
    (warning,) = confirmed.warnings
    assert "batch size 1000 ran in the search" in warning.message
    assert "ran out of memory after 3 steps" in warning.message
    assert f"{trial.batch_size} is recommended" in warning.message


@pytest.mark.parametrize(("multiple", "expected"), [(1, 100), (8, 96), (64, 64)])
def test_multiples(multiple: int, expected: int) -> None:
    confirmed, _ = confirmation(up_to(100), multiple_of=multiple)
    trial = confirmed.confirm(100)
    assert trial is not None
    assert trial.batch_size == expected


def test_no_size_below_the_smallest_useful_one_is_tried() -> None:
    confirmed, runner = confirmation(up_to(10), min_batch_size=98)
    assert confirmed.confirm(100) is None
    assert min(size for size, *_ in runner.asked) >= 98


def test_a_global_batch_is_confirmed_with_accumulated_gradients() -> None:
    confirmed, runner = confirmation(up_to(300), global_batch=1024, world_size=1)
    confirmed.confirm(392)
    assert runner.asked == [(256, BUDGET, 20, 2)]
    parts = confirmed.global_batch
    assert parts is not None
    assert (parts.micro_batch_size, parts.accumulation_steps) == (256, 4)


def test_a_micro_batch_that_does_not_run_gives_way_to_another_split() -> None:
    confirmed, runner = confirmation(up_to(250), global_batch=1024)
    trial = confirmed.confirm(392)
    assert trial is not None
    assert trial.batch_size <= 250
    assert confirmed.global_batch is not None
    assert confirmed.global_batch.micro_batch_size == trial.batch_size
    assert runner.asked[0][0] == 256


def test_one_micro_batch_accumulates_nothing() -> None:
    confirmed, runner = confirmation(up_to(300), global_batch=512, world_size=2)
    confirmed.confirm(300)
    assert runner.asked == [(256, BUDGET, 20, None)]


def test_no_size_is_said_to_have_run_that_did_not() -> None:
    def fails(n: int) -> Trial:
        if n == 1:
            return Trial(batch_size=1, status="error", error_kind="batch_norm", message="refused")
        return Trial(batch_size=n, status="error", error_kind="kernel_limit", message="too large")

    confirmed, _ = confirmation(fails)
    assert confirmed.confirm(3) is None
    (warning,) = confirmed.warnings
    assert "batch size 3 in a fresh process failed after 0 steps" in warning.message


def test_a_size_that_the_model_refuses_gives_way_to_the_next() -> None:
    def answer(n: int) -> Trial:
        if n % 10 == 0:
            return ran(n)
        return Trial(batch_size=n, status="error", error_kind="refused", message="not ten")

    confirmed, runner = confirmation(answer)
    assert confirmed.confirm(105) == ran(100)
    assert [size for size, *_ in runner.asked] == [105, 104, 103, 102, 101, 100]
    assert confirmed.warnings == []

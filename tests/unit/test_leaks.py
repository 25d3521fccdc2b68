"""Leaks are told from caches, and from memory that comes and goes."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from bsfind.failures.leaks import (
    StepMemory,
    is_freed_at_the_end,
    is_growing,
    leak_after,
    leak_message,
    leak_of,
    steady_retries,
    steps_differ,
    steps_of_a_verdict,
)
from bsfind.trial import Leak
from bsfind.units import GIB, MIB


def held(steps: int, *, each: int = 0, every: int = 1, until: int | None = None) -> list[int]:
    """Bytes after each step of a model that keeps `each` more at every so-manieth step."""
    return [
        GIB + (step > 1) * 8 * MIB + min(step, until or step) // every * each
        for step in range(1, steps + 1)
    ]


def leak(sizes: list[int], steps: int, left: int = 8 * GIB) -> Leak | None:
    """The verdict on a course whose first `steps` steps were asked for."""
    if not is_growing(sizes[:steps]):
        return None
    return leak_after(sizes[:steps], sizes[steps : steps + steps_of_a_verdict(steps)], left)


def test_what_every_step_keeps_is_found_in_three_steps() -> None:
    found = leak(held(20, each=4 * MIB), 3)
    assert found == Leak(bytes_per_step=4 * MIB, lasts_steps=2048 + 11)
    assert leak_message(found, 11) == (
        "memory still grows after 11 steps, a leak or a cache that fills: 4.0 MiB more after every step, "
        "out of memory after about 2,059 steps"
    )


@given(every=st.integers(1, 9), each=st.integers(1 * MIB, 100 * MIB))
def test_what_every_few_steps_keep_is_found_in_twenty(every: int, each: int) -> None:
    found = leak(held(60, each=each, every=every), 20)
    assert found is not None
    assert 0.6 * each / every <= found.bytes_per_step <= 1.7 * each / every


@given(until=st.integers(2, 19), each=st.integers(1, 100 * MIB))
def test_a_cache_that_fills_up_is_no_leak(until: int, each: int) -> None:
    assert leak(held(60, each=each, until=until), 20) is None


def test_what_the_end_of_an_epoch_frees() -> None:
    sizes = held(5, each=MIB)
    lasting = Leak(bytes_per_step=MIB, lasts_steps=2000)
    assert is_freed_at_the_end(lasting, sizes, sizes[1], 1000)
    assert not is_freed_at_the_end(lasting, sizes, sizes[-1], 1000)
    assert not is_freed_at_the_end(lasting, sizes, sizes[-1] - MIB, 1000)
    assert not is_freed_at_the_end(lasting, sizes, sizes[1], 3000)  # full before that
    assert not is_freed_at_the_end(lasting, held(5), GIB, 1000)  # which grows in jumps


def test_the_optimizer_s_state_is_no_leak() -> None:
    assert not is_growing(held(3))
    assert not is_growing(held(20))
    assert not is_growing(held(1))
    assert not is_growing(held(2))


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=20, max_size=60))
def test_what_comes_and_goes_is_no_leak(extra: list[int]) -> None:
    """Whatever the order: as much as at the end was held before."""
    sizes = [GIB, *(GIB + more * MIB for more in (*extra, 3, *extra))]
    assert leak(sizes, 20) is None or max(sizes[:20]) < sizes[-1]


def test_growth_that_would_take_for_ever_is_none() -> None:
    assert leak(held(20, each=512), 3, left=80 * GIB) is None
    assert leak(held(20, each=MIB), 3, left=80 * GIB) is not None


def test_retries_of_the_first_steps_are_not_steady() -> None:
    assert steady_retries([4, 9, 9]) == 0
    assert steady_retries([4, 9, 12]) == 3
    assert steady_retries([4, 9, 10, *[12] * 17]) == 0
    assert steady_retries(list(range(20))) == 10
    assert steady_retries([4, 9]) == 0
    assert steady_retries([]) == 0


def steps(*held: int, warm_up: int = 1, peak: int = GIB) -> list[StepMemory]:
    """Steps after which so many MiB are held; the first ones warm up."""
    return [
        StepMemory(held_bytes=mib * MIB, peak_bytes=peak, is_warm_up=number <= warm_up)
        for number, mib in enumerate(held, 1)
    ]


def test_no_verdict_while_first_gradients_appear() -> None:
    """State of the optimizer grows with them: six steps, and eight more, that are all warm-up."""
    asked: list[int] = []

    def run_more(count: int) -> list[StepMemory]:
        asked.append(count)
        if len(asked) == 1:
            return steps(*range(7, 7 + count), warm_up=count)
        return steps(*[7 + 8] * count, warm_up=0)

    assert leak_of(steps(1, 2, 3, 4, 5, 6), run_more, 8 * GIB) is None
    assert asked == [8]  # nothing grows after these: there is but one step since
    assert leak_of(steps(1, 2, 3, 4, 5, 6, warm_up=6), run_more, 8 * GIB) is None
    assert asked == [8]


def test_a_leak_is_told_once_all_gradients_were_there() -> None:
    held = iter(range(10, 100))

    def run_more(count: int) -> list[StepMemory]:
        return steps(*[next(held) for _ in range(count)], warm_up=0)

    found = leak_of(steps(3, 5, 7, 8, 9, warm_up=3), run_more, 8 * GIB)
    assert found is not None
    assert found.bytes_per_step == MIB


def test_more_steps_run_where_the_peaks_of_a_few_differ() -> None:
    asked: list[int] = []

    def run_more(count: int) -> list[StepMemory]:
        asked.append(count)
        return steps(*[1] * count, warm_up=0)

    few = [*steps(1, 1), *steps(1, warm_up=0, peak=2 * GIB)]
    assert steps_differ(few)
    assert leak_of(few, run_more, GIB) is None
    assert asked == [8]
    many = [*steps(*[1] * 12), *steps(1, warm_up=0, peak=2 * GIB)]
    assert steps_differ(many)
    assert leak_of(many, run_more, GIB) is None
    assert asked == [8]
    assert not steps_differ(steps(*[1] * 12))
    # The first step, and one with first gradients, are unlike the others by nature.
    assert not steps_differ([*steps(1, 1, warm_up=2), *steps(1, 1, warm_up=0, peak=2 * GIB)])


def test_steps_in_which_the_cache_was_flushed_do_not_differ() -> None:
    """Near the limit convolutions get by with smaller workspaces: the step is the same."""
    alike = steps(1, 1, 1, 1)
    pressed = dataclasses.replace(alike[-1], peak_bytes=GIB // 2)
    assert steps_differ([*alike, pressed])
    assert not steps_differ([*alike, dataclasses.replace(pressed, has_retries=True)])


@given(batches=st.integers(3, 20), first=st.sampled_from([3, 5, 6, 20]))
def test_a_cache_of_batches_that_is_still_filling_is_no_leak(batches: int, first: int) -> None:
    """Of more batches than a trial has steps."""
    ran = first

    def run_more(count: int) -> list[StepMemory]:
        nonlocal ran
        ran += count
        held = [min(step, batches) for step in range(ran - count + 1, ran + 1)]
        return steps(*held, warm_up=0)

    asked = [min(step, batches) for step in range(1, first + 1)]
    assert leak_of(steps(*asked), run_more, 8 * GIB) is None


@given(every=st.integers(1, 5))
def test_what_is_kept_for_ever_is_a_leak_all_the_same(every: int) -> None:
    ran = 20

    def run_more(count: int) -> list[StepMemory]:
        nonlocal ran
        ran += count
        return steps(*[step // every for step in range(ran - count + 1, ran + 1)], warm_up=0)

    found = leak_of(steps(*[step // every for step in range(1, 21)]), run_more, 8 * GIB)
    assert found is not None
    assert 0.6 * MIB / every <= found.bytes_per_step <= 1.7 * MIB / every

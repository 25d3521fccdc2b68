"""A global batch is met exactly where that is reasonable, and never with more than fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.search.accepted_sizes import Multiples, Series
from bsfind.search.recommend import split_global_batch

SIZES = st.integers(1, 100_000)


@given(
    asked=SIZES, largest=st.integers(1, 5000), world=st.integers(1, 64), multiple=st.integers(1, 64)
)
def test_the_factors_fit_and_make_the_product(
    asked: int, largest: int, world: int, multiple: int
) -> None:
    parts = split_global_batch(asked, largest, world_size=world, sizes=Multiples(multiple))
    if parts is None:
        assert min(largest, -(-asked // world)) < multiple
        return
    assert 1 <= parts.micro_batch_size <= largest
    assert parts.micro_batch_size % multiple == 0
    assert parts.asked == asked
    assert parts.world_size == world
    assert parts.reached == parts.micro_batch_size * parts.accumulation_steps * world


@given(micro=st.integers(1, 2000), steps=st.integers(1, 50), world=st.integers(1, 16))
def test_what_can_be_met_with_the_largest_is_met(micro: int, steps: int, world: int) -> None:
    parts = split_global_batch(micro * steps * world, micro, world_size=world)
    assert parts is not None
    assert parts.reached == parts.asked
    assert parts.accumulation_steps == steps


@given(asked=SIZES, largest=st.integers(1, 5000))
def test_the_nearest_is_near(asked: int, largest: int) -> None:
    parts = split_global_batch(asked, largest)
    assert parts is not None
    assert abs(parts.reached - asked) <= (parts.accumulation_steps + 1) / 2
    if asked <= largest:
        assert (parts.micro_batch_size, parts.accumulation_steps) == (asked, 1)


@pytest.mark.parametrize(
    ("asked", "largest", "micro", "steps"),
    [
        (1024, 392, 256, 4),  # 342 x 3 would be two samples off
        (1021, 500, 340, 3),  # a prime number is not worth 1 x 1021
        (256, 392, 256, 1),
        (7, 1, 1, 7),
        (1_000_000_007, 1, 1, 1_000_000_007),
        (1_000_000_007, 46_340, 42_084, 23_762),
        (2_147_483_647, 1000, 993, 2_162_622),
    ],
)
def test_examples(asked: int, largest: int, micro: int, steps: int) -> None:
    parts = split_global_batch(asked, largest)
    assert parts is not None
    assert (parts.micro_batch_size, parts.accumulation_steps) == (micro, steps)


@given(asked=SIZES, largest=st.integers(1, 5000), world=st.integers(1, 8))
def test_micro_batches_of_a_model_that_accepts_powers_of_two(
    asked: int, largest: int, world: int
) -> None:
    parts = split_global_batch(asked, largest, world_size=world, sizes=Series(1, 2))
    assert parts is not None
    assert parts.micro_batch_size in Series(1, 2)
    assert parts.micro_batch_size <= largest

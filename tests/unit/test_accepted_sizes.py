"""Which sizes does a model accept? The search asks few questions, and its answer is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bsfind.search.accepted_sizes import AcceptedSizes, Multiples, Series
from bsfind.search.bracket import Bracket
from bsfind.search.estimate import line_through_peaks
from bsfind.trial import Trial

MIB = 1 << 20
Accepts = Callable[[int], bool]


def trial(
    n: int, accepts: Accepts, maximum: int, says: str = "RuntimeError: invalid shape"
) -> Trial:
    """Return the trial of a model that refuses some sizes: before it runs out of memory, or after."""
    if not accepts(n):
        return Trial(batch_size=n, status="error", error_kind="refused", message=says)
    if n > maximum:
        return Trial(batch_size=n, status="oom", message="out of memory")
    return Trial(
        batch_size=n,
        status="ok",
        peak_allocated_bytes=n * MIB,
        peak_reserved_bytes=n * MIB,
        resident_bytes=0,
        activation_bytes=n * MIB,
    )


def searched(
    accepts: Accepts,
    maximum: int,
    *,
    smallest: int = 1,
    largest: int = 2**31 - 1,
    tolerance: float = 0.005,
    multiple_of: int = 1,
    expected: int | None = None,
    says: str = "RuntimeError: invalid shape",
) -> Bracket:
    search = Bracket(
        smallest=smallest,
        largest=largest,
        tolerance=tolerance,
        estimate=lambda trials: line_through_peaks(trials, maximum * MIB),
        expected=expected,
        sizes=AcceptedSizes(multiple_of),
    )
    asked: set[int] = set()
    while (n := search.next()) is not None:
        assert smallest <= n <= largest
        assert n % multiple_of == 0
        assert n not in asked
        asked.add(n)
        assert len(asked) <= 60 + 3 * math.log2(min(largest, 4 * maximum)), "not logarithmic"
        search.record(trial(n, accepts, maximum, says))
    if search.best is not None:
        assert accepts(search.best.batch_size)
    return search


def best(search: Bracket) -> int | None:
    return search.best.batch_size if search.best else None


def groups_of(g: int, *, with_fewer: bool) -> Accepts:
    return lambda n: n % g == 0 or (with_fewer and n < g)


@given(
    group=st.sampled_from([2, 3, 4, 6, 8, 12, 16, 32, 64]),
    maximum=st.integers(300, 20_000),
    with_fewer=st.booleans(),
    tolerance=st.sampled_from([0.0, 0.005]),
)
@settings(max_examples=300)
def test_groups(group: int, maximum: int, with_fewer: bool, tolerance: float) -> None:
    search = searched(groups_of(group, with_fewer=with_fewer), maximum, tolerance=tolerance)
    exact = maximum - maximum % group
    found = best(search)
    assert found is not None
    if group >= 32 and with_fewer:  # few sizes are left to tell it from larger groups
        assert found >= 0.8 * exact
    else:
        assert exact - found <= max(group if tolerance else 0, tolerance * exact)
    assert search.is_proven
    assert len(search.trials) <= 45


@given(
    group=st.integers(2, 200),
    maximum=st.integers(1000, 20_000),
    template=st.sampled_from(
        ["shape '[{0}, -1, 3]' is invalid for input of size 960", "expected a multiple of {0}"]
    ),
    with_fewer=st.booleans(),
)
def test_a_group_that_the_message_names(
    group: int, maximum: int, template: str, with_fewer: bool
) -> None:
    says = f"RuntimeError: {template.format(group)}"
    accepts = groups_of(group, with_fewer=with_fewer)
    search = searched(accepts, maximum, tolerance=0.0, says=says)
    assert best(search) == maximum - maximum % group


@given(exponent=st.integers(6, 17), maximum=st.integers(1, 40_000))
def test_a_queue_whose_length_the_batch_has_to_divide(exponent: int, maximum: int) -> None:
    length = 1 << exponent
    search = searched(lambda n: length % n == 0, maximum)
    assert best(search) == min(length, 1 << (maximum.bit_length() - 1))
    assert len(search.trials) <= 50


@pytest.mark.parametrize("length", [1000, 10_000, 60_000, 65_536, 12_288, 3 * 4096, 4000])
@pytest.mark.parametrize("maximum", [150, 700, 3000])
def test_queues_of_other_lengths(length: int, maximum: int) -> None:
    found = best(searched(lambda n: length % n == 0, maximum))
    exact = max(n for n in range(1, maximum + 1) if length % n == 0)
    assert found is not None
    assert found >= exact / 2


@given(only=st.integers(1, 400), maximum=st.integers(400, 5000), names=st.booleans())
def test_one_size_only(only: int, maximum: int, names: bool) -> None:
    says = f"RuntimeError: tensor a (5) must match tensor b ({only})" if names else "AssertionError"
    search = searched(lambda n: n == only, maximum, says=says)
    if names or only in (1, 2, 5, 8, 48, 64, 240, 256):
        found_it = only in (1, 5) or names or only in (8, 48, 64, 240, 256)
        assert best(search) == (only if found_it else None)
    assert len(search.trials) <= 45


@given(most=st.integers(1, 3000), maximum=st.integers(1, 3000))
@example(most=913, maximum=1072)
def test_sizes_up_to_a_limit_of_the_model(most: int, maximum: int) -> None:
    search = searched(lambda n: n <= most, maximum, tolerance=0.0)
    if min(most, maximum) >= 5:
        assert best(search) == min(most, maximum)
        assert search.is_proven


@given(group=st.sampled_from([4, 6, 8, 16]), most=st.integers(300, 3000))
def test_groups_up_to_a_limit_of_the_model(group: int, most: int) -> None:
    search = searched(lambda n: n % group == 0 and n <= most, 5000, tolerance=0.0)
    assert best(search) == most - most % group


@given(
    smallest=st.integers(1, 300),
    span=st.integers(0, 3000),
    multiple=st.sampled_from([1, 2, 4, 8, 12]),
    group=st.sampled_from([1, 2, 3, 4, 6, 16, 7]),
    maximum=st.integers(1, 5000),
)
def test_limits_and_multiples(
    smallest: int, span: int, multiple: int, group: int, maximum: int
) -> None:
    largest = max(smallest + span, multiple * -(-smallest // multiple))
    searched(
        groups_of(group, with_fewer=False),
        maximum,
        smallest=smallest,
        largest=largest,
        multiple_of=multiple,
    )


@given(data=st.data(), largest=st.integers(1, 10**6), multiple=st.integers(1, 16))
@settings(max_examples=300)
def test_arbitrary_refusals(data: st.DataObject, largest: int, multiple: int) -> None:
    if largest < multiple:
        largest = multiple
    search = Bracket(
        smallest=1,
        largest=largest,
        tolerance=0.0,
        estimate=lambda _: data.draw(st.none() | st.integers(-5, 2 * largest)),
        sizes=AcceptedSizes(multiple),
    )
    asked: set[int] = set()
    while (n := search.next()) is not None:
        assert 1 <= n <= largest
        assert n % multiple == 0
        assert n not in asked
        asked.add(n)
        assert len(asked) <= 70 + 5 * math.log2(largest)
        kind = data.draw(st.sampled_from(["ok", "oom", "refused"]))
        if kind == "refused":
            search.record(Trial(batch_size=n, status="error", error_kind="refused", message="3, 7"))
        else:
            search.record(Trial(batch_size=n, status="ok" if kind == "ok" else "oom"))
    ran = [t.batch_size for t in search.trials if t.status == "ok"]
    assert best(search) == (max(ran) if ran else None)


def test_a_broken_model_costs_few_trials() -> None:
    search = searched(lambda _: False, 1000)
    assert search.best is None
    assert [t.batch_size for t in search.trials] == [5, 8, 1, 64, 48, 240, 256, 100, 420]


@pytest.mark.parametrize("size", [1, 5, 64])
def test_a_single_size_is_asked_once(size: int) -> None:
    search = searched(lambda _: False, 1000, smallest=size, largest=size)
    assert [t.batch_size for t in search.trials] == [size]


def test_batch_norm_refuses_one_sample_and_leaves_two() -> None:
    search = Bracket(smallest=1, largest=100, tolerance=0.0, estimate=lambda _: None, first=1)
    assert search.next() == 1
    search.record(Trial(batch_size=1, status="error", error_kind="batch_norm", message="one"))
    assert search.next() == 2
    search.record(Trial(batch_size=2, status="oom"))
    for size in (64, 8):  # where memory falls with the batch size, these may fit
        assert search.next() == size
        search.record(Trial(batch_size=size, status="oom"))
    assert search.next() is None
    assert search.is_proven


@pytest.mark.parametrize(
    ("accepts", "multiple_of", "accepted"),
    [
        (groups_of(4, with_fewer=True), 4, "multiples of 4"),
        (groups_of(6, with_fewer=False), 6, "multiples of 6"),
        (groups_of(16, with_fewer=True), 16, "multiples of 16"),
        (lambda n: n % 8 == 0, 8, "multiples of 8"),
        (lambda n: 65536 % n == 0, None, "powers of two"),
        (lambda n: n == 64, None, None),
    ],
)
def test_what_is_said_of_the_sizes(
    accepts: Accepts, multiple_of: int | None, accepted: str | None
) -> None:
    search = searched(accepts, 777)
    found = search.sizes.found()
    assert found is not None
    assert found.error == "RuntimeError: invalid shape"
    assert (found.multiple_of, found.accepted) == (multiple_of, accepted)
    assert not any(accepts(n) for n in found.batch_sizes)


def test_nothing_is_said_where_nothing_was_refused() -> None:
    assert searched(lambda _: True, 777, multiple_of=8).sizes.found() is None


def test_a_prediction_tells_the_form() -> None:
    sizes = AcceptedSizes(1)
    predicted = searched(groups_of(4, with_fewer=False), 777).sizes.found()
    sizes.assume(predicted)
    search = Bracket(
        smallest=1, largest=10**6, tolerance=0.0, estimate=lambda _: None, expected=776, sizes=sizes
    )
    while (n := search.next()) is not None:
        assert n % 4 == 0
        search.record(trial(n, groups_of(4, with_fewer=False), 777))
    assert best(search) == 776


@given(st.integers(1, 1000), st.integers(1, 10**6))
def test_forms(times: int, size: int) -> None:
    for form in (Multiples(times), Series(times, 2), Series(times, 10)):
        below, above = form.at_most(size), form.above(size)
        assert below <= size < above
        assert below == 0 or below in form
        assert above in form
        assert below % times == above % times == 0
        assert form.at_most(above - 1) == below
        assert str(form)


@pytest.mark.parametrize("says", ["ValueError: 3840 must be divisible by the batch size", "wrong"])
def test_a_queue_whose_length_is_no_power_of_two(says: str) -> None:
    search = searched(lambda n: 3840 % n == 0, 1856, says=says)
    assert best(search) == 1280
    assert str(search.sizes.form) == "divisors of 3840"
    assert len(search.trials) <= (5 if says != "wrong" else 24)


@given(least=st.integers(6, 60))
def test_a_least_number_of_samples_is_not_taken_for_a_multiple(least: int) -> None:
    search = searched(lambda n: n >= least, 997, tolerance=0.0)
    assert best(search) == 997
    found = search.sizes.found()
    assert found is not None
    assert found.accepted is None


@pytest.mark.parametrize("of", [7, 14, 20, 25, 100])
def test_groups_that_few_models_have(of: int) -> None:
    assert best(searched(lambda n: n % of == 0, 1856, tolerance=0.0)) == 1856 - 1856 % of

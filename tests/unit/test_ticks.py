"""The ticks of axes: where they are and what they say."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.report.plot import Ticks, batch_size_ticks, memory_ticks
from bsfind.units import GIB, KIB, MIB

UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": GIB << 10}


def labels(ticks: Ticks) -> list[str]:
    return list(ticks.values())


@pytest.mark.parametrize(
    ("high", "most", "expected"),
    [
        (1, 7, ["0", "1"]),
        (3, 7, ["0", "1", "2", "3"]),
        (9, 4, ["0", "5"]),
        (448, 7, ["0", "100", "200", "300", "400"]),
        (73_000, 7, ["0", "20,000", "40,000", "60,000"]),
    ],
)
def test_batch_sizes(high: int, most: int, expected: list[str]) -> None:
    assert labels(batch_size_ticks(high, most)) == expected


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (25 * GIB, ["0", "5 GiB", "10 GiB", "15 GiB", "20 GiB", "25 GiB"]),
        (1700 * MIB, ["0", "0.5 GiB", "1.0 GiB", "1.5 GiB"]),
        (1000 * MIB, ["0", "200 MiB", "400 MiB", "600 MiB", "800 MiB", "1,000 MiB"]),
        (3 * 1024 * GIB, ["0", "0.5 TiB", "1.0 TiB", "1.5 TiB", "2.0 TiB", "2.5 TiB", "3.0 TiB"]),
        (7, ["0", "2 B", "4 B", "6 B"]),
    ],
)
def test_memory(high: int, expected: list[str]) -> None:
    assert labels(memory_ticks(high, 7)) == expected


def check(ticks: Ticks, high: int, most: int) -> None:
    values = list(ticks)
    assert values[0] == 0
    assert 2 <= len(values) <= most
    assert values == sorted(set(values))
    assert values[-1] <= high
    assert len(set(labels(ticks))) == len(ticks)
    steps = {b - a for a, b in itertools.pairwise(values)}
    assert max(steps) - min(steps) <= 1  # tenths of a unit are not a whole number of bytes
    # There is no room for another tick: the axis is not left half empty.
    assert high - values[-1] < max(steps)


@given(high=st.integers(1, 2**31), most=st.integers(3, 12))
def test_ticks_of_any_batch_size(high: int, most: int) -> None:
    ticks = batch_size_ticks(high, most)
    check(ticks, high, most)
    assert [int(label.replace(",", "")) for label in ticks.values()] == list(ticks)


@given(high=st.integers(1, 1 << 47), most=st.integers(3, 12))
def test_ticks_of_any_memory(high: int, most: int) -> None:
    ticks = memory_ticks(high, most)
    check(ticks, high, most)
    units = set()
    for value, label in list(ticks.items())[1:]:
        found = re.fullmatch(r"([\d,]+(?:\.\d)?) (\w+)", label)
        assert found is not None
        units.add(found[2])
        said = float(found[1].replace(",", "")) * UNITS[found[2]]
        assert abs(said - value) <= 0.5
    assert len(units) == 1

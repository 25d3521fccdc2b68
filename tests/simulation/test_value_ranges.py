"""Bounds of values: what follows from them for the results of operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bsfind.simulation.trace.value_bounds import Ranges
from bsfind.simulation.trace.value_rules import Range, range_of_values
from bsfind.simulation.trace.values import Values


def after(name: str, *args: Any, known: dict[int, Range] | None = None, **kwargs: Any) -> Range:
    """Return the bounds of an operator's result; `known` has those of its arguments by position."""
    ranges = Ranges(lambda _: None)
    for position, bounds in (known or {}).items():
        ranges.set(args[position], bounds)
    out = torch.empty(3, device="meta")
    ranges.follow(f"aten::{name}", args, kwargs, [out], [])
    return ranges.of(out)


X = torch.empty(4, device="meta")
Y = torch.empty(4, device="meta")
FLAGS = torch.empty(4, device="meta", dtype=torch.bool)


@pytest.mark.parametrize(
    ("name", "args", "bounds"),
    [
        ("eq", (X, X), (1, 1)),
        ("ne", (X, X), (0, 0)),
        ("lt", (X, math.inf), (1, 1)),
        ("eq", (X, -math.inf), (0, 0)),
        ("lt", (X, Y), (0, 1)),
        ("isnan", (X,), (0, 0)),
        ("isinf", (X,), (0, 0)),
        ("argmax", (X, 0), (0, 3)),
        ("zeros", ([4],), (0, 0)),
    ],
)
def test_what_nothing_is_known_of(name: str, args: Any, bounds: tuple[float, float]) -> None:
    assert after(name, *args)[:2] == bounds


@pytest.mark.parametrize(
    ("name", "args", "bounds", "expected"),
    [
        ("le", (X, 1), Range(0, 1), (1, 1)),
        ("gt", (X, 1), Range(0, 1), (0, 0)),
        ("lt", (X, 1), Range(0, 1), (0, 1)),
        ("add", (X, 2), Range(0, 1), (2, 3)),
        ("mul", (X, -2), Range(0, 1), (-2, 0)),
        ("div", (1, X), Range(-1, 1), None),
        ("abs", (X,), Range(-3, 1), (0, 3)),
        ("sum", (X,), Range(1, 1), (4, 4)),
        ("sum", (X,), Range(0, 2), (0, 8)),
        ("isinf", (X,), Range(-math.inf, 0), (0, 1)),
        ("upsample_nearest2d", (X, [2, 2]), Range(1, 1), (1, 1)),
        ("upsample_bicubic2d", (X, [2, 2], False), Range(1, 1), None),
        ("clamp", (X, 0, 2), Range(-9, 9), (0, 2)),
        ("masked_fill", (X, FLAGS, -math.inf), Range(0, 1), (-math.inf, 1)),
        ("max", (X,), Range(0, 7), (0, 7)),
    ],
)
def test_what_follows_from_bounds(
    name: str, args: Any, bounds: Range, expected: tuple[float, float] | None
) -> None:
    position = next(index for index, value in enumerate(args) if value is X)
    found = after(name, *args, known={position: bounds})
    assert found[:2] == (
        expected or (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
    )


def test_quantifiers_of_what_is_unknown_are_as_in_training() -> None:
    assert after("all", FLAGS).guess == 1
    assert after("any", FLAGS).guess == 0
    assert after("all", FLAGS, known={0: Range(0, 0)}).is_decided
    answer = torch.empty((), device="meta", dtype=torch.bool)
    assert after("logical_not", answer, known={0: Range(0, 1, 1)}).guess == 0
    assert after("logical_and", answer, FLAGS, known={0: Range(0, 1, 0)}).likely == 0


def test_a_write_to_a_part_widens_the_bounds_of_the_whole() -> None:
    ranges = Ranges(lambda _: None)
    whole = torch.empty(4, device="meta")
    ranges.set(whole, Range(0, 0))
    ranges.follow("aten::fill_", (whole[:2], 5.0), {}, [], [whole[:2]])
    assert ranges.of(whole)[:2] == (0, 5)
    ranges.follow("aten::fill_", (whole, 3.0), {}, [], [whole])
    assert ranges.of(whole)[:2] == (3, 3)


def test_bounds_of_float8() -> None:
    values = torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn)
    assert range_of_values(values) == Range(-2.0, 1.0)


KNOWN = (None, Range(0, 1), Range(-1, 1), Range(2, 2), Range(0, 1, 1), Range(-math.inf, math.inf))


@pytest.mark.parametrize(
    "name",
    [
        *("add", "mul", "div", "maximum", "clamp_min", "where", "eq", "max", "sigmoid", "bmm"),
        *("add_", "mul_", "copy_", "fill_", "bmm_"),
    ],
)
def test_a_call_that_is_known_has_the_bounds_of_its_arguments(name: str) -> None:
    """Whatever the bounds of an earlier call of the same shapes were."""
    bounds: Any = {}
    for _ in range(2):
        for first in KNOWN:
            for second in KNOWN:
                found = []
                for is_again in (False, True):
                    values = Values()
                    x, y, out = (torch.empty(4, device="meta") for _ in range(3))
                    for tensor, known in ((x, first), (y, second), (out, None)):
                        if known is not None:
                            values.ranges.set(tensor, known)
                    tensors = (FLAGS, x, y) if name == "where" else (x, y)
                    outputs, mutated = ([None], [x]) if name.endswith("_") else ([out], [])
                    made: tuple[Any, ...] = (outputs, mutated)
                    is_done = is_again and values.follow_again(
                        f"aten::{name}", bounds, tensors, {}, tensors, *made
                    )
                    if not is_done:
                        values.follow(None, f"aten::{name}", tensors, {}, *made)
                    found.append([values.ranges.of(tensor) for tensor in (x, y, out)])
                assert found[0] == found[1], (first, second)
    assert bounds or name.startswith("bmm")


def test_values_of_an_argument_are_not_left_out() -> None:
    values = Values()
    x, y, out = (torch.empty(2, device="meta") for _ in range(3))
    values.set(y, torch.tensor([1.0, 2.0]))
    assert not values.follow_again("aten::add", {}, (x, y), {}, (x, y), [out], [])
    assert values.follow_again("aten::add", {}, (x, x), {}, (x, x), [out], [])
    assert not values.follow_again("aten::zeros_like", {}, (x,), {}, (x,), [out], [])
    assert not values.follow_again(
        "aten::add", {}, (x, torch.ones(())), {}, (x, torch.ones(())), [out], []
    )

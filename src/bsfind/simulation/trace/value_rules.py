"""What follows for the bounds of an operator's results from those of its arguments (see value_ranges.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bsfind.simulation.trace.torch_private import address_of
from bsfind.simulation.trace.value_ranges import (
    EITHER,
    FALSE,
    TRUE,
    Answer,
    Range,
    Ranges,
    Rule,
    range_of_dtype,
    union,
)


def _of(ranges: Ranges, value: Any) -> Range:
    if isinstance(value, torch.Tensor):
        return ranges.of(value)
    return Range(value, value) if isinstance(value, (int, float)) else Range(-math.inf, math.inf)


def _always(low: float, high: float) -> Rule:
    return lambda _ranges, _args, _kwargs: Range(low, high)


def _same(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    """For operators that choose from their first argument, and may tell where they chose."""
    tensors = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
    return [union(*(_of(ranges, tensor) for tensor in tensors)), Range(0, _count(args[0]) - 1)]


def _count(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 1


def _converted(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
    known = _of(ranges, args[0])
    return _truth(known) if kwargs.get("dtype") == torch.bool else known


def _copied(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    known = _of(ranges, args[1])
    return _truth(known) if args[0].dtype == torch.bool else known


def _truth(known: Range) -> Range:
    """Return the bounds of values turned to bool."""
    if known.low > 0 or known.high < 0:
        return TRUE
    return Range(known.low, known.high, known.likely) if known in (FALSE, EITHER) else EITHER


def _quantifier(likely: float) -> Rule:
    def rule(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
        if not args[0].numel():
            return Range(likely, likely)
        known = _truth(_of(ranges, args[0]))
        return known if known.is_decided else Range(0, 1, likely)

    return rule


def _comparison(name: str) -> Rule:
    holds_for_equals = name in ("eq", "le", "ge")

    def rule(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
        if _are_one(args[0], args[1]):
            return TRUE if holds_for_equals else FALSE
        a, b = _of(ranges, args[0]), _of(ranges, args[1])
        if name in ("gt", "ge"):
            a, b = b, a
        if name in ("eq", "ne"):
            if a.high < b.low or b.high < a.low:
                return FALSE if name == "eq" else TRUE
            if a.is_decided and a[:2] == b[:2]:
                return TRUE if name == "eq" else FALSE
            return EITHER
        if a.high < b.low or (holds_for_equals and a.high <= b.low):
            return TRUE
        if a.low > b.high or (not holds_for_equals and a.low >= b.high):
            return FALSE
        return EITHER

    return rule


def _are_one(a: Any, b: Any) -> bool:
    """Tell whether two arguments are one tensor, as in `x != x`, which asks for nan."""
    return a is b or (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and a.layout is b.layout is torch.strided
        and a.is_meta == b.is_meta
        and address_of(a.untyped_storage()) == address_of(b.untyped_storage())
        and a.storage_offset() == b.storage_offset()
        and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    )


def _not(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    known = _of(ranges, args[0])
    if known.low < 0 or known.high > 1 or args[0].dtype != torch.bool:
        return None
    return Range(1 - known.high, 1 - known.low, None if known.likely is None else 1 - known.likely)


def _both(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    return _joined(_of(ranges, args[0]), _of(ranges, args[1]), min, 0)


def _any_of_both(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    return _joined(_of(ranges, args[0]), _of(ranges, args[1]), max, 1)


def _joined(a: Range, b: Range, join: Callable[..., float], winner: float) -> Range | None:
    if min(a.low, b.low) < 0 or max(a.high, b.high) > 1:
        return None
    opinions = [r.low if r.is_decided else r.likely for r in (a, b)]
    likely: float | None = None
    if winner in opinions:
        likely = winner
    elif None not in opinions:
        likely = 1 - winner
    return Range(join(a.low, b.low), join(a.high, b.high), likely)


def _arithmetic(combine: Callable[[float, float], float]) -> Rule:
    def rule(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
        if len(args) < 2 or kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode"):
            return None
        a, b = _of(ranges, args[0]), _of(ranges, args[1])
        tensor = args[0] if isinstance(args[0], torch.Tensor) else args[1]
        if tensor.dtype == torch.bool and combine is _times:
            return _both(ranges, args, kwargs)
        try:
            ends = [combine(x, y) for x in a[:2] for y in b[:2]]
        except (ZeroDivisionError, OverflowError):
            return None
        # Finite values overflow in theory only; infinite ones stay so.
        is_finite = all(map(math.isfinite, (*a[:2], *b[:2])))
        if any(map(math.isnan, ends)) or (is_finite and not all(map(math.isfinite, ends))):
            return None
        if combine is _over and b.low <= 0 <= b.high:
            return None
        limits = range_of_dtype(tensor.dtype)
        if is_finite and (min(ends) < limits.low or max(ends) > limits.high):
            return None
        return Range(min(ends), max(ends))

    return rule


def _plus(a: float, b: float) -> float:
    return a + b


def _minus(a: float, b: float) -> float:
    return a - b


def _times(a: float, b: float) -> float:
    return a * b


def _over(a: float, b: float) -> float:
    return a / b


def _sum(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    known, count = _of(ranges, args[0]), _count(args[0])
    if len(args) > 1 and args[1]:
        shape = args[0].shape
        count = math.prod(shape[dim] for dim in args[1]) if shape else 1
    limits = range_of_dtype(args[0].dtype)
    if known[:2] == limits[:2] and args[0].dtype != torch.bool:
        return None
    return (
        Range(min(0, known.low * count, known.low), max(0, known.high * count, known.high))
        if (not known.is_decided)
        else Range(known.low * count, known.low * count)
    )


def _clamped(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return _within(ranges, args[0], low, high)


def _within(ranges: Ranges, value: Any, low: Any, high: Any) -> Range:
    known = _of(ranges, value)
    least, most = known.low, known.high
    if low is not None:
        bound = _of(ranges, low)
        least, most = max(least, bound.low), max(most, bound.high)
    if high is not None:
        bound = _of(ranges, high)
        least, most = min(least, bound.low), min(most, bound.high)
    return Range(least, most)


def _absolute(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    known = _of(ranges, args[0])
    ends = (abs(known.low), abs(known.high))
    return Range(0 if known.low <= 0 <= known.high else min(ends), max(ends))


def _infinite(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    known = _of(ranges, args[0])
    return FALSE if all(map(math.isfinite, known[:2])) else Range(0, 1, 0)


def _index(position: int) -> Rule:
    """For operators whose result counts along their input's dimension."""

    def rule(_ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
        tensor = args[0]
        dim = args[position] if len(args) > position else None
        size = tensor.shape[dim] if isinstance(dim, int) and tensor.dim() else tensor.numel()
        return Range(0, max(0, size - 1))

    return rule


def _drawn(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> Answer:
    """For `randint` and `random_`: from LOW (0), below HIGH."""
    numbers = [value for value in args if isinstance(value, int)][:2]
    if not numbers:
        return None
    return Range(numbers[0] if len(numbers) == 2 else 0, numbers[-1] - 1)


def _mixed(*positions: int, also: float | None = None) -> Rule:
    """For operators whose result has values of several arguments."""

    def rule(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
        parts = [_of(ranges, args[position]) for position in positions if position < len(args)]
        if also is not None:
            parts.append(Range(also, also))
        parts.extend(_of(ranges, kwargs[key]) for key in ("value",) if kwargs.get(key) is not None)
        return union(*parts)

    return rule


def _uniform(_ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> Answer:
    given = [*args[1:3], *(kwargs[key] for key in ("from", "to") if key in kwargs)]
    return Range(*given) if len(given) == 2 else Range(0, 1)


def _filled(position: int) -> Rule:
    return lambda ranges, args, _: _of(ranges, args[position])


_SHARE, _SIGNED, _POSITIVE = _always(0, 1), _always(-1, 1), _always(0, 3.4e38)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("sigmoid", "_softmax", "rand", "rand_like", "bernoulli", "eye"), _SHARE),
    **dict.fromkeys(("tanh", "sin", "cos", "sign", "sgn", "erf", "cosine_similarity"), _SIGNED),
    **dict.fromkeys(
        ("exp", "softplus", "sqrt", "rsqrt", "square", "exp2", "var", "std"), _POSITIVE
    ),
    **dict.fromkeys(("linalg_vector_norm", "norm", "_cdist_forward", "exponential"), _POSITIVE),
    "_log_softmax": _always(-3.4e38, 0),
    "isnan": _always(0, 0),
    **dict.fromkeys(("isinf", "isposinf", "isneginf"), _infinite),
    **{name: _comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **dict.fromkeys(("all", "_is_all_true"), _quantifier(1)),
    **dict.fromkeys(("any", "_is_any_true"), _quantifier(0)),
    **dict.fromkeys(("logical_not", "bitwise_not"), _not),
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__", "__iand__"), _both),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__", "__ior__"), _any_of_both),
    **dict.fromkeys(("max", "min", "amax", "amin", "mean", "median", "gather", "index"), _same),
    **dict.fromkeys(("index_select", "take", "clone", "repeat", "flip", "roll", "sort"), _same),
    **dict.fromkeys(("topk", "kthvalue", "mode", "embedding", "cat", "stack"), _same),
    **dict.fromkeys(("masked_select", "cummax", "cummin", "round", "floor", "nan_to_num"), _same),
    "_to_copy": _converted,
    "copy": _copied,
    "add": _arithmetic(_plus),
    "sub": _arithmetic(_minus),
    "mul": _arithmetic(_times),
    "div": _arithmetic(_over),
    "sum": _sum,
    **dict.fromkeys(("clamp", "hardtanh"), _clamped),
    "clamp_min": lambda ranges, args, _: _within(ranges, args[0], args[1], None),
    "clamp_max": lambda ranges, args, _: _within(ranges, args[0], None, args[1]),
    "relu": lambda ranges, args, _: _within(ranges, args[0], 0, None),
    "maximum": lambda ranges, args, _: _within(ranges, args[0], args[1], None),
    "minimum": lambda ranges, args, _: _within(ranges, args[0], None, args[1]),
    "abs": _absolute,
    "argmax": _index(1),
    "argmin": _index(1),
    "multinomial": lambda _ranges, args, _: Range(0, args[0].shape[-1] - 1),
    **dict.fromkeys(("randint", "random"), _drawn),
    "where": _mixed(1, 2),
    "masked_fill": _mixed(0, 2),
    "scatter": _mixed(0, 3),
    "index_put": lambda ranges, args, kwargs: (
        None if len(args) > 3 and args[3] else _mixed(0, 2)(ranges, args, kwargs)
    ),
    "tril": _mixed(0, also=0),
    "triu": _mixed(0, also=0),
    "constant_pad_nd": lambda ranges, args, _: union(
        _of(ranges, args[0]), _of(ranges, args[2] if len(args) > 2 else 0)
    ),
    "uniform": _uniform,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), _always(0, 0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _always(1, 1)),
    **dict.fromkeys(("full", "full_like", "fill"), _filled(1)),
    "new_full": _filled(2),
}
"""By the operator's name, for its form that returns, its form in place, and `out=`."""

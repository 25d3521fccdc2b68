"""Bounds of values, and what follows for the results of operators from the bounds of their arguments.

Activations have no values here, but a softmax lies between 0 and 1, an index below the size that it
counts, and what training without errors computes is finite. Code asks for that much:
`(p <= 1).all()`, `isnan(x).any()`, `ids.max() < n`. Of a bool that may be either, the bounds also say
which one such training has: `all` of unknown values is true, `any` of them is false.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.torch_private import address_of


class Range(NamedTuple):
    """Bounds of values, both included.

    Attributes:
        low: the smallest value that is possible; a bool counts as 0 or 1.
        high: the largest value that is possible.
        likely: the value that training without errors has; None: neither is likelier.
    """

    low: float
    high: float
    likely: float | None = None

    @property
    def is_decided(self) -> bool:
        """Whether only one value is possible."""
        return self.low == self.high

    @property
    def guess(self) -> float:
        """The value that a read returns: the likely one, or the possible one nearest to zero."""
        return min(max(0.0, self.low), self.high) if self.likely is None else self.likely


FALSE, TRUE, EITHER = Range(0, 0), Range(1, 1), Range(0, 1)
"""Bounds of a bool."""

_ANY = Range(-math.inf, math.inf)

Bounds = Callable[[Any], Range]
"""Returns the bounds of an argument of an operator."""

Answer = Range | None | list[Range | None]
"""Bounds of an operator's result, or of each of its results; None: nothing follows."""

Rule = Callable[[Bounds, Args, Kwargs], Answer]
"""Returns the bounds of an operator's results, given those of its arguments."""


def range_of_dtype(dtype: torch.dtype) -> Range:
    """Return the bounds of any finite value of a dtype."""
    if dtype == torch.bool:
        return EITHER
    if dtype.is_complex:
        return _ANY
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return Range(limits.min, limits.max)


def range_of_values(values: torch.Tensor) -> Range:
    """Return the bounds of a tensor with values: not empty, not complex."""
    stored = values.untyped_storage()
    if values.numel() * values.element_size() > stored.nbytes():  # expanded
        values = torch.empty(0, dtype=values.dtype).set_(stored)
    if values.dtype.is_floating_point and values.dtype.itemsize == 1:
        values = values.float()  # float8 has no `aminmax`
    low, high = values.aminmax() if values.dtype != torch.bool else (values.all(), values.any())
    return Range(low.item(), high.item())


def range_of_number(value: Any) -> Range:
    """Return the bounds of an argument that is not a tensor."""
    return Range(value, value) if isinstance(value, (int, float)) else _ANY


def union(*ranges: Range) -> Range:
    """Return the bounds of what lies in any of the given ones."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


# ------------------------------------------------------------------------- choosing and converting


def _same(of: Bounds, args: Args, _: Kwargs) -> Answer:
    """For operators that choose from their first argument, and may tell where they chose."""
    tensors = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
    return [union(*map(of, tensors)), Range(0, _count(args[0]) - 1)]


def _count(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 1


def _converted(of: Bounds, args: Args, kwargs: Kwargs) -> Answer:
    known = of(args[0])
    return _truth(known) if kwargs.get("dtype") == torch.bool else known


def _copied(of: Bounds, args: Args, _: Kwargs) -> Answer:
    known = of(args[1])
    return _truth(known) if args[0].dtype == torch.bool else known


def _truth(known: Range) -> Range:
    """Return the bounds of values turned to bool."""
    if known.low > 0 or known.high < 0:
        return TRUE
    return Range(known.low, known.high, known.likely) if known in (FALSE, EITHER) else EITHER


def _mixed(*positions: int, also: float | None = None) -> Rule:
    """For operators whose result has values of several arguments."""

    def rule(of: Bounds, args: Args, kwargs: Kwargs) -> Answer:
        parts = [of(args[position]) for position in positions if position < len(args)]
        if also is not None:
            parts.append(Range(also, also))
        if kwargs.get("value") is not None:
            parts.append(of(kwargs["value"]))
        return union(*parts)

    return rule


def _put(of: Bounds, args: Args, kwargs: Kwargs) -> Answer:
    """For `index_put`, which may accumulate."""
    return None if len(args) > 3 and args[3] else _mixed(0, 2)(of, args, kwargs)


def _index(of: Bounds, args: Args, _: Kwargs) -> Answer:
    """For operators whose result counts along a dimension of their input."""
    tensor = args[0]
    dim = args[1] if len(args) > 1 else None
    size = tensor.shape[dim] if isinstance(dim, int) and tensor.dim() else tensor.numel()
    return Range(0, max(0, size - 1))


# ------------------------------------------------------------------------------------------- bools


def _quantifier(likely: float) -> Rule:
    def rule(of: Bounds, args: Args, _: Kwargs) -> Answer:
        if not args[0].numel():
            return Range(likely, likely)
        known = _truth(of(args[0]))
        return known if known.is_decided else Range(0, 1, likely)

    return rule


def _comparison(name: str) -> Rule:
    holds_for_equals = name in ("eq", "le", "ge")

    def rule(of: Bounds, args: Args, _: Kwargs) -> Answer:
        if _are_one(args[0], args[1]):
            return TRUE if holds_for_equals else FALSE
        a, b = of(args[0]), of(args[1])
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


def _not(of: Bounds, args: Args, _: Kwargs) -> Answer:
    known = of(args[0])
    if known.low < 0 or known.high > 1 or args[0].dtype != torch.bool:
        return None
    return Range(1 - known.high, 1 - known.low, None if known.likely is None else 1 - known.likely)


def _both(of: Bounds, args: Args, _: Kwargs) -> Answer:
    return _joined(of(args[0]), of(args[1]), min, 0)


def _either(of: Bounds, args: Args, _: Kwargs) -> Answer:
    return _joined(of(args[0]), of(args[1]), max, 1)


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


def _infinite(of: Bounds, args: Args, _: Kwargs) -> Answer:
    return FALSE if all(map(math.isfinite, of(args[0])[:2])) else Range(0, 1, 0)


# ----------------------------------------------------------------------------------------- numbers


def _always(low: float, high: float) -> Rule:
    return lambda _of, _args, _kwargs: Range(low, high)


def _filled(position: int) -> Rule:
    return lambda of, args, _: of(args[position])


def _arithmetic(combine: Callable[[Any, Any], float]) -> Rule:
    def rule(of: Bounds, args: Args, kwargs: Kwargs) -> Answer:
        if len(args) < 2 or kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode"):
            return None
        a, b = of(args[0]), of(args[1])
        tensor = args[0] if isinstance(args[0], torch.Tensor) else args[1]
        if tensor.dtype == torch.bool and combine is operator.mul:
            return _both(of, args, kwargs)
        try:
            ends = [combine(x, y) for x in a[:2] for y in b[:2]]
        except (ZeroDivisionError, OverflowError):
            return None
        # Finite values overflow in theory only; infinite ones stay so.
        is_finite = all(map(math.isfinite, (*a[:2], *b[:2])))
        if any(map(math.isnan, ends)) or (is_finite and not all(map(math.isfinite, ends))):
            return None
        if combine is operator.truediv and b.low <= 0 <= b.high:
            return None
        limits = range_of_dtype(tensor.dtype)
        if is_finite and (min(ends) < limits.low or max(ends) > limits.high):
            return None
        return Range(min(ends), max(ends))

    return rule


def _sum(of: Bounds, args: Args, _: Kwargs) -> Answer:
    known, count = of(args[0]), _count(args[0])
    if len(args) > 1 and args[1]:
        shape = args[0].shape
        count = math.prod(shape[dim] for dim in args[1]) if shape else 1
    limits = range_of_dtype(args[0].dtype)
    if known[:2] == limits[:2] and args[0].dtype != torch.bool:
        return None
    if known.is_decided:
        return Range(known.low * count, known.low * count)
    return Range(min(0, known.low * count, known.low), max(0, known.high * count, known.high))


def _clamped(of: Bounds, args: Args, kwargs: Kwargs) -> Answer:
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return _within(
        of(args[0]), None if low is None else of(low), None if high is None else of(high)
    )


def _within(known: Range, low: Range | None, high: Range | None) -> Range:
    """Return the bounds of values that are clamped to bounds."""
    least, most = known.low, known.high
    if low is not None:
        least, most = max(least, low.low), max(most, low.high)
    if high is not None:
        least, most = min(least, high.low), min(most, high.high)
    return Range(least, most)


def _absolute(of: Bounds, args: Args, _: Kwargs) -> Answer:
    known = of(args[0])
    ends = (abs(known.low), abs(known.high))
    return Range(0 if known.low <= 0 <= known.high else min(ends), max(ends))


def _drawn(of: Bounds, args: Args, _: Kwargs) -> Answer:
    """For `randint` and `random_`: from LOW (0), below HIGH."""
    numbers = [value for value in args if isinstance(value, int)][:2]
    if not numbers:
        return None
    return Range(numbers[0] if len(numbers) == 2 else 0, numbers[-1] - 1)


def _uniform(_of: Bounds, args: Args, kwargs: Kwargs) -> Answer:
    given = [*args[1:3], *(kwargs[key] for key in ("from", "to") if key in kwargs)]
    return Range(*given) if len(given) == 2 else Range(0, 1)


_CHOOSE = tuple(
    name.format(dimensions)
    for dimensions in (1, 2, 3)
    for name in (
        *("upsample_nearest{}d", "_upsample_nearest_exact{}d", "adaptive_max_pool{}d"),
        *("max_pool{}d_with_indices", "fractional_max_pool{}d"),
    )
)
"""Operators that give an image another size by a choice of its pixels."""

_SHARE, _SIGNED, _POSITIVE = _always(0, 1), _always(-1, 1), _always(0, 3.4e38)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("sigmoid", "_softmax", "rand", "rand_like", "bernoulli", "eye"), _SHARE),
    **dict.fromkeys(("tanh", "sin", "cos", "sign", "sgn", "erf", "cosine_similarity"), _SIGNED),
    **dict.fromkeys(
        ("exp", "softplus", "sqrt", "rsqrt", "square", "exp2", "var", "std"), _POSITIVE
    ),
    **dict.fromkeys(("linalg_vector_norm", "norm", "_cdist_forward", "exponential"), _POSITIVE),
    "_log_softmax": _always(-3.4e38, 0),
    **dict.fromkeys(("isnan", "zeros", "zeros_like", "new_zeros", "zero"), _always(0, 0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _always(1, 1)),
    **dict.fromkeys(("full", "full_like", "fill"), _filled(1)),
    "new_full": _filled(2),
    **dict.fromkeys(("isinf", "isposinf", "isneginf"), _infinite),
    **{name: _comparison(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **dict.fromkeys(("all", "_is_all_true"), _quantifier(1)),
    **dict.fromkeys(("any", "_is_any_true"), _quantifier(0)),
    **dict.fromkeys(("logical_not", "bitwise_not"), _not),
    **dict.fromkeys(("logical_and", "bitwise_and", "__and__", "__iand__"), _both),
    **dict.fromkeys(("logical_or", "bitwise_or", "__or__", "__ior__"), _either),
    **dict.fromkeys(("max", "min", "amax", "amin", "mean", "median", "gather", "index"), _same),
    **dict.fromkeys(("index_select", "take", "clone", "repeat", "flip", "roll", "sort"), _same),
    **dict.fromkeys(("topk", "kthvalue", "mode", "embedding", "cat", "stack"), _same),
    **dict.fromkeys(("masked_select", "cummax", "cummin", "round", "floor", "nan_to_num"), _same),
    **dict.fromkeys(_CHOOSE, _same),
    "_to_copy": _converted,
    "copy": _copied,
    "add": _arithmetic(operator.add),
    "sub": _arithmetic(operator.sub),
    "mul": _arithmetic(operator.mul),
    "div": _arithmetic(operator.truediv),
    "sum": _sum,
    "abs": _absolute,
    **dict.fromkeys(("clamp", "hardtanh"), _clamped),
    **dict.fromkeys(
        ("clamp_min", "maximum"), lambda of, args, _: _within(of(args[0]), of(args[1]), None)
    ),
    **dict.fromkeys(
        ("clamp_max", "minimum"), lambda of, args, _: _within(of(args[0]), None, of(args[1]))
    ),
    "relu": lambda of, args, _: _within(of(args[0]), FALSE, None),
    **dict.fromkeys(("argmax", "argmin"), _index),
    "multinomial": lambda _of, args, _: Range(0, args[0].shape[-1] - 1),
    **dict.fromkeys(("randint", "random"), _drawn),
    "uniform": _uniform,
    "where": _mixed(1, 2),
    "masked_fill": _mixed(0, 2),
    "scatter": _mixed(0, 3),
    "index_put": _put,
    **dict.fromkeys(("tril", "triu"), _mixed(0, also=0)),
    "constant_pad_nd": lambda of, args, _: union(of(args[0]), of(args[2] if len(args) > 2 else 0)),
}
"""By the operator's name, for its form that returns, its form in place, and `out=`."""

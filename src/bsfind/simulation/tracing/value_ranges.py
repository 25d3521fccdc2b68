"""Bounds of the values of tensors whose values are not known.

Activations have no values here, but a softmax lies between 0 and 1, an index below the size that it
counts, and what a model in good health computes is finite. Code asks for that much: `(p <= 1).all()`,
`isnan(x).any()`, `ids.max() < n`. Bounds go with the storage, as views share it, and hold for all of
its elements. Of a bool that may be either, they also say which one training in good health has: `all`
of what is unknown is true, `any` of it is false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bsfind.simulation.tracing.torch_private import address_of

__all__ = ["Range", "Ranges", "range_of_dtype"]


class Range(NamedTuple):
    """Bounds of values, both included.

    Attributes:
        low: the smallest value that is possible; a bool counts as 0 or 1.
        high: the largest.
        likely: which of them a training in good health has; None: nothing speaks for one.
    """

    low: float
    high: float
    likely: float | None = None

    @property
    def is_decided(self) -> bool:
        """Whether there is one value only."""
        return self.low == self.high

    @property
    def guess(self) -> float:
        """The value that is taken where one is read: the likely one, or the one nearest to zero."""
        return min(max(0.0, self.low), self.high) if self.likely is None else self.likely


_FALSE, _TRUE, _EITHER = Range(0, 0), Range(1, 1), Range(0, 1)


def range_of_dtype(dtype: torch.dtype) -> Range:
    """Return the bounds of any finite value of a dtype."""
    if dtype == torch.bool:
        return _EITHER
    if dtype.is_complex:
        return Range(-math.inf, math.inf)
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return Range(limits.min, limits.max)


class Ranges:
    """The bounds that are narrower than those of the dtype, by storage.

    Args:
        values_of: returns the values of a tensor, None where they are not known.
    """

    def __init__(self, values_of: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        self._values_of = values_of
        self._ranges: dict[int, Range] = {}

    def __len__(self) -> int:
        return len(self._ranges)

    def forget_storage(self, key: int) -> None:
        """Drop what is known of a storage."""
        self._ranges.pop(key, None)

    def of(self, tensor: torch.Tensor) -> Range:
        """Return the bounds of a tensor's values."""
        if tensor.layout is torch.strided:
            values = self._values_of(tensor) if tensor.is_meta else tensor
            if values is None:
                known = self._ranges.get(address_of(tensor.untyped_storage()))
                if known is not None:
                    return known
            elif values.numel() and not values.is_complex():
                return _range_of(values)
        return range_of_dtype(tensor.dtype)

    def set(self, tensor: torch.Tensor, known: Range) -> None:
        """Keep the bounds of a tensor that is all of its storage."""
        self._ranges[address_of(tensor.untyped_storage())] = known

    def keep_range_of(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the bounds of values that are about to be forgotten."""
        if values.numel() and not values.is_complex():
            self.set(tensor, _range_of(values))

    @staticmethod
    def has_rule(name: str, *, is_in_place: bool) -> bool:
        """Tell whether anything follows for the results of an operator."""
        return _rule_name(name, is_in_place=is_in_place) in _RULES

    def follow(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        outputs: Sequence[torch.Tensor | None],
        mutated: Sequence[torch.Tensor],
    ) -> None:
        """Keep what follows for the results of an operator, given the bounds of its arguments.

        Args:
            name: of the operator's schema.
            args: as it was called.
            kwargs: as it was called.
            outputs: its new tensors without known values, flattened; None for the others.
            mutated: tensors without known values that it wrote to.
        """
        rule = _RULES.get(_rule_name(name, is_in_place=bool(mutated)))
        if rule is None:
            return
        answer = rule(self, args, kwargs)
        several = answer if isinstance(answer, list) else [answer]
        for tensor, known in zip((*mutated, *outputs), several, strict=False):
            if tensor is None or tensor.layout is not torch.strided:
                continue
            storage = tensor.untyped_storage()
            before = self._ranges.get(address_of(storage))
            if known is None:
                self._ranges.pop(address_of(storage), None)
            elif tensor.numel() * tensor.element_size() >= storage.nbytes():
                self._ranges[address_of(storage)] = known
            elif before is not None:
                self._ranges[address_of(storage)] = _union(before, known)


def _rule_name(name: str, *, is_in_place: bool) -> str:
    bare = name.removeprefix("aten::")
    return bare.removesuffix("_") if is_in_place else bare


def _range_of(values: torch.Tensor) -> Range:
    stored = values.untyped_storage()
    if values.numel() * values.element_size() > stored.nbytes():  # expanded
        values = torch.empty(0, dtype=values.dtype).set_(stored)
    low, high = values.aminmax() if values.dtype != torch.bool else (values.all(), values.any())
    return Range(low.item(), high.item())


def _union(*ranges: Range) -> Range:
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


# ------------------------------------------------------------------------------------ the rules

_Answer = Range | None | list[Range | None]
_Rule = Callable[[Ranges, Sequence[Any], dict[str, Any]], _Answer]


def _of(ranges: Ranges, value: Any) -> Range:
    if isinstance(value, torch.Tensor):
        return ranges.of(value)
    return Range(value, value) if isinstance(value, (int, float)) else Range(-math.inf, math.inf)


def _always(low: float, high: float) -> _Rule:
    return lambda _ranges, _args, _kwargs: Range(low, high)


def _same(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    """For operators that choose from their first argument, and may tell where they chose."""
    tensors = args[0] if isinstance(args[0], (list, tuple)) else args[:1]
    return [_union(*(_of(ranges, tensor) for tensor in tensors)), Range(0, _count(args[0]) - 1)]


def _count(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 1


def _converted(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> _Answer:
    known = _of(ranges, args[0])
    return _truth(known) if kwargs.get("dtype") == torch.bool else known


def _copied(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    known = _of(ranges, args[1])
    return _truth(known) if args[0].dtype == torch.bool else known


def _truth(known: Range) -> Range:
    """Return the bounds of values turned to bool."""
    if known.low > 0 or known.high < 0:
        return _TRUE
    return Range(known.low, known.high, known.likely) if known in (_FALSE, _EITHER) else _EITHER


def _quantifier(likely: float) -> _Rule:
    def rule(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
        if not args[0].numel():
            return Range(likely, likely)
        known = _truth(_of(ranges, args[0]))
        return known if known.is_decided else Range(0, 1, likely)

    return rule


def _comparison(name: str) -> _Rule:
    holds_for_equals = name in ("eq", "le", "ge")

    def rule(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
        if _are_one(args[0], args[1]):
            return _TRUE if holds_for_equals else _FALSE
        a, b = _of(ranges, args[0]), _of(ranges, args[1])
        if name in ("gt", "ge"):
            a, b = b, a
        if name in ("eq", "ne"):
            if a.high < b.low or b.high < a.low:
                return _FALSE if name == "eq" else _TRUE
            if a.is_decided and a[:2] == b[:2]:
                return _TRUE if name == "eq" else _FALSE
            return _EITHER
        if a.high < b.low or (holds_for_equals and a.high <= b.low):
            return _TRUE
        if a.low > b.high or (not holds_for_equals and a.low >= b.high):
            return _FALSE
        return _EITHER

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


def _not(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    known = _of(ranges, args[0])
    if known.low < 0 or known.high > 1 or args[0].dtype != torch.bool:
        return None
    return Range(1 - known.high, 1 - known.low, None if known.likely is None else 1 - known.likely)


def _both(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    return _joined(_of(ranges, args[0]), _of(ranges, args[1]), min, 0)


def _any_of_both(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
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


def _arithmetic(combine: Callable[[float, float], float]) -> _Rule:
    def rule(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> _Answer:
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


def _sum(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
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


def _clamped(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> _Answer:
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


def _absolute(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    known = _of(ranges, args[0])
    ends = (abs(known.low), abs(known.high))
    return Range(0 if known.low <= 0 <= known.high else min(ends), max(ends))


def _infinite(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    known = _of(ranges, args[0])
    return _FALSE if all(map(math.isfinite, known[:2])) else Range(0, 1, 0)


def _index(position: int) -> _Rule:
    """For operators whose result counts along their input's dimension."""

    def rule(_ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
        tensor = args[0]
        dim = args[position] if len(args) > position else None
        size = tensor.shape[dim] if isinstance(dim, int) and tensor.dim() else tensor.numel()
        return Range(0, max(0, size - 1))

    return rule


def _drawn(ranges: Ranges, args: Sequence[Any], _: dict[str, Any]) -> _Answer:
    """For `randint` and `random_`: from LOW (0), below HIGH."""
    numbers = [value for value in args if isinstance(value, int)][:2]
    if not numbers:
        return None
    return Range(numbers[0] if len(numbers) == 2 else 0, numbers[-1] - 1)


def _mixed(*positions: int, also: float | None = None) -> _Rule:
    """For operators whose result has values of several arguments."""

    def rule(ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> _Answer:
        parts = [_of(ranges, args[position]) for position in positions if position < len(args)]
        if also is not None:
            parts.append(Range(also, also))
        parts.extend(_of(ranges, kwargs[key]) for key in ("value",) if kwargs.get(key) is not None)
        return _union(*parts)

    return rule


def _uniform(_ranges: Ranges, args: Sequence[Any], kwargs: dict[str, Any]) -> _Answer:
    given = [*args[1:3], *(kwargs[key] for key in ("from", "to") if key in kwargs)]
    return Range(*given) if len(given) == 2 else Range(0, 1)


def _filled(position: int) -> _Rule:
    return lambda ranges, args, _: _of(ranges, args[position])


_SHARE, _SIGNED, _POSITIVE = _always(0, 1), _always(-1, 1), _always(0, 3.4e38)

_RULES: dict[str, _Rule] = {
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
    "constant_pad_nd": lambda ranges, args, _: _union(
        _of(ranges, args[0]), _of(ranges, args[2] if len(args) > 2 else 0)
    ),
    "uniform": _uniform,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), _always(0, 0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _always(1, 1)),
    **dict.fromkeys(("full", "full_like", "fill"), _filled(1)),
    "new_full": _filled(2),
}
"""By the operator's name, for its form that returns, its form in place, and `out=`."""

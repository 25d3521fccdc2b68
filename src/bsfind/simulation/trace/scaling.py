"""From a few traces to those of other batch sizes.

Shapes, strides and sizes of a step are polynomials in the batch size, nearly all of them of degree
one. Where traces consist of the same calls in the same order, each number in them is fitted, and one
trace more than its degree needs has to agree. What kernels allocate inside depends on thresholds, so
the rules are asked again for the new shapes. Where the traces differ in structure, or a number is no
polynomial (padding, parity, a square root), there is no fit, and each batch size has to be traced.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from bsfind.errors import TargetError
from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, MARK, Entry

_FEWEST = 3
"""Traces that a fit needs: two for a line, and one that has to lie on it."""

_MOST = 8
"""Traces that a fit is sought for; where none is found by then, there is none."""

_Number = Callable[[int], int]
_Made = Callable[[int], Any]


class _Differs(Exception):  # noqa: N818 (a way out, not an error)
    """The traces are not of one structure, or nothing follows from them for a batch size."""


_Part = tuple[bool, Any]
"""Whether a part of a trace varies with the batch size, and the part, or the function that makes it."""


class Traces:
    """The traces of trials of one number of steps, and those of other sizes that follow from them."""

    def __init__(self) -> None:
        self._traced: dict[int, Sequence[Entry]] = {}
        self._scaled: Callable[[int], list[Entry]] | None = None
        self._smallest = 2  # A batch of one is special: it has no stride of its own.
        self._may_scale = True

    @property
    def scale(self) -> bool:
        """Whether other batch sizes follow from those that were traced."""
        return self._scaled is not None

    def at(
        self, batch_size: int, trace: Callable[[], Sequence[Entry]], *, exact: bool
    ) -> tuple[Sequence[Entry], bool]:
        """Return the trace of a trial, and whether it was traced at this very batch size.

        The first batch sizes are traced. From the third on, others follow from these where the
        structure of the step allows it, and where they are multiples of the greatest common divisor of
        the traced ones: the user's code may refuse others. A size that is traced later contradicts
        what followed from the others, or confirms it.

        Args:
            batch_size: number of samples.
            trace: traces the trial.
            exact: trace this very batch size.

        Raises:
            BsfindError: what `trace` raises.
        """
        known = self._traced.pop(batch_size, None)
        if known is not None:
            self._traced[batch_size] = known  # the last that is forgotten
            return known, True
        follows = (
            self._scaled is not None
            and batch_size >= self._smallest
            and batch_size % math.gcd(*self._traced) == 0
        )
        if self._scaled is not None and follows and not exact:
            with contextlib.suppress(_Differs):
                return self._scaled(batch_size), False
        try:
            entries = trace()
        except TargetError:
            if follows:  # this size was not the only one: no other follows from any more
                self._scaled, self._may_scale = None, False
            raise
        self._remember(batch_size, entries)
        return entries, True

    def forget(self, batch_size: int) -> None:
        """Forget the trace of a size, which has to be traced anew, and what followed from it."""
        if self._traced.pop(batch_size, None) is not None:
            self._scaled = None

    def _remember(self, batch_size: int, entries: Sequence[Entry]) -> None:
        self._traced[batch_size] = entries
        if not self._may_scale:
            if len(self._traced) > _MOST:  # each is large
                del self._traced[next(iter(self._traced))]
            return
        if batch_size < self._smallest:
            return
        several = [item for item in sorted(self._traced.items()) if item[0] >= self._smallest]
        had_fit = self._scaled is not None
        self._scaled = fit(several)
        if had_fit:
            self._may_scale = self._scaled is not None
            return
        # Below some size, the step may be another one. Sizes that are near each other prove little.
        while (
            self._scaled is None and len(several) > _FEWEST and several[-1][0] >= 2 * several[1][0]
        ):
            del several[0]
            self._scaled, self._smallest = fit(several), several[0][0]
        if self._scaled is None:
            self._smallest = 2
            self._may_scale = len(self._traced) < _MOST


def fit(traces: Sequence[tuple[int, Sequence[Entry]]]) -> Callable[[int], list[Entry]] | None:
    """Return a function from the batch size to the trace; None if these traces do not allow it.

    It raises `_Differs` for a batch size for which a number is not whole, or a size is negative.

    Args:
        traces: three or more of different batch sizes, blocks numbered alike. Numbers in them are
            polynomials of a degree that two fewer points determine. Where some have fewer steps than
            others, the function returns a trace of as many, without what comes after the last.
    """
    if len(traces) < _FEWEST:
        return None
    traces = _of_equally_many_steps(traces)
    if len({len(entries) for _, entries in traces}) > 1:
        return None
    fitter = _Fitter([size for size, _ in traces])
    try:
        parts = [fitter.entry(alike) for alike in zip(*(e for _, e in traces), strict=True)]
    except _Differs:
        return None
    return lambda batch_size: [_made(part, batch_size) for part in parts]


def _of_equally_many_steps(
    traces: Sequence[tuple[int, Sequence[Entry]]],
) -> Sequence[tuple[int, Sequence[Entry]]]:
    """Return traces cut to the steps of the shortest, unless an evaluation pass follows the steps."""
    marks = [
        [place for place, entry in enumerate(entries) if entry[0] == MARK] for _, entries in traces
    ]
    ends: list[list[int]] = []
    for (_, entries), places in zip(traces, marks, strict=True):
        if any(entries[place][1] == "evaluation_begin" for place in places):
            return traces
        ends.append([place + 1 for place in places if entries[place][1] == "step_end"])
    steps = min(map(len, ends))
    if steps in (0, max(map(len, ends))):
        return traces
    return [
        (size, entries[: end[steps - 1]]) for (size, entries), end in zip(traces, ends, strict=True)
    ]


class _Fitter:
    """Fits the parts of traces; each method raises `_Differs` where they are not alike."""

    def __init__(self, batch_sizes: Sequence[int]) -> None:
        self._sizes = batch_sizes
        self._known: dict[tuple[int, ...], _Part] = {}
        self._calls: dict[tuple[int, ...], _Part] = {}

    def entry(self, alike: Sequence[Entry]) -> _Part:
        """Fit an entry."""
        first = alike[0]
        if any(other[0] != first[0] for other in alike):
            raise _Differs
        if first[0] == ALLOCATE:
            return self._allocation(alike)
        if first[0] == CALL:
            return self._called(alike)
        return False, _same(alike)

    def _allocation(self, alike: Sequence[Entry]) -> _Part:
        kind, block, _, operator = alike[0]
        if any(other[1] != block or other[3] != operator for other in alike):
            raise _Differs
        varies, number = self._number([entry[2] for entry in alike])
        if not varies:
            return False, alike[0]
        return True, lambda batch_size: (kind, block, _size(number, batch_size), operator)

    def _called(self, alike: Sequence[Entry]) -> _Part:
        kind, rule, _, _, thread, operator = alike[0]
        if any((e[1], e[4], e[5]) != (rule, thread, operator) for e in alike):
            raise _Differs
        call = self._call([entry[2] for entry in alike])
        outputs = self._outputs([entry[3] for entry in alike])
        if not call[0] and not outputs[0]:
            return False, alike[0]
        return True, lambda batch_size: (
            *(kind, rule, _made(call, batch_size), _made(outputs, batch_size), thread, operator),
        )

    def _call(self, calls: Sequence[Call]) -> _Part:
        key = tuple(map(id, calls))
        known = self._calls.get(key)
        if known is None:
            known = self._calls[key] = self._fitted_call(calls)
        return known

    def _fitted_call(self, calls: Sequence[Call]) -> _Part:
        first = calls[0]
        names = _same([list(call.arguments) for call in calls])
        values = self._value([tuple(call.arguments.values()) for call in calls])
        outputs = self._value([call.outputs for call in calls])
        if not values[0] and not outputs[0]:
            return False, first
        operator, overload = first.operator, first.overload
        last: list[tuple[int, Call]] = []

        def make(batch_size: int) -> Call:
            # Layers repeat: entries share their calls, and so they do what is made of them.
            if last and last[0][0] == batch_size:
                return last[0][1]
            arguments = dict(zip(names, _made(values, batch_size), strict=True))
            call = Call(operator, overload, arguments, _made(outputs, batch_size))
            last[:] = [(batch_size, call)]
            return call

        return True, make

    def _outputs(self, alike: Sequence[Any]) -> _Part:
        sizes: list[_Part] = []
        for outputs in zip(*alike, strict=True):
            if None in outputs:
                sizes.append((False, _same(outputs)))
                continue
            block = _same([output[0] for output in outputs])
            varies, number = self._number([output[1] for output in outputs])
            sizes.append((True, _pair(block, number)) if varies else (False, outputs[0]))
        if not any(varies for varies, _ in sizes):
            return False, alike[0]
        return True, lambda batch_size: tuple(_made(size, batch_size) for size in sizes)

    def _value(self, alike: Sequence[Any]) -> _Part:
        first = alike[0]
        kind = type(first)
        if any(type(other) is not kind for other in alike):
            raise _Differs
        if kind is TensorSpec:
            return self._spec(alike)
        if kind is list or kind is tuple:
            if any(len(other) != len(first) for other in alike):
                raise _Differs
            parts = [self._value(items) for items in zip(*alike, strict=True)]
            if not any(varies for varies, _ in parts):
                return False, first
            return True, lambda batch_size: kind(_made(part, batch_size) for part in parts)
        if kind is int:
            return self._number(alike)
        if kind is float:
            return False, first  # factors of means and the like: nothing is allocated by them
        return False, _same(alike)

    def _spec(self, alike: Sequence[TensorSpec]) -> _Part:
        first = alike[0]
        if all(other is first for other in alike):
            return False, first
        dtype, on_gpu = _same([(spec.dtype, spec.on_gpu) for spec in alike])
        shape = self._value([spec.shape for spec in alike])
        stride = self._value([spec.stride for spec in alike])
        if not shape[0] and not stride[0]:
            return False, first
        return True, lambda batch_size: TensorSpec(
            _made(shape, batch_size), _made(stride, batch_size), dtype, on_gpu
        )

    def _number(self, values: Sequence[int]) -> _Part:
        key = tuple(values)
        known = self._known.get(key)
        if known is None:
            varies = any(value != key[0] for value in key)
            known = (True, _polynomial(self._sizes, key)) if varies else (False, key[0])
            self._known[key] = known
        return known


def number_at(points: Mapping[int, int], batch_size: int) -> int | None:
    """Return a number at a batch size, by those at others; None: they are no polynomial.

    Args:
        points: the number at each of at least two batch sizes.
        batch_size: the batch size.
    """
    sizes = sorted(points)
    try:
        return _polynomial(sizes, [points[size] for size in sizes])(batch_size)
    except _Differs:
        return None


def _polynomial(sizes: Sequence[int], values: Sequence[int]) -> _Number:
    """Return the polynomial through points whose degree at least two fewer points determine.

    Raises:
        _Differs: there is none.
    """
    differences = [Fraction(value) for value in values]  # Newton's divided differences
    coefficients = [differences[0]]
    for order in range(1, len(values)):
        differences = [
            (after - before) / (sizes[place + order] - sizes[place])
            for place, (before, after) in enumerate(pairwise(differences))
        ]
        if not any(differences):
            break
        coefficients.append(differences[0])
    else:
        raise _Differs
    if len(coefficients) == 2 and coefficients[1].denominator == 1:
        slope = int(coefficients[1])
        offset = values[0] - slope * sizes[0]
        return lambda batch_size: offset + slope * batch_size

    def value(batch_size: int) -> int:
        number = Fraction(0)
        for size, coefficient in zip(
            reversed(sizes[: len(coefficients)]), reversed(coefficients), strict=True
        ):
            number = number * (batch_size - size) + coefficient
        if number.denominator != 1:
            raise _Differs
        return int(number)

    return value


def _same(alike: Sequence[Any]) -> Any:
    """Return what all are equal to."""
    first = alike[0]
    if any(other != first for other in alike):
        raise _Differs
    return first


def _size(number: _Number, batch_size: int) -> int:
    nbytes = number(batch_size)
    if nbytes < 0:
        raise _Differs
    return nbytes


def _pair(block: int, number: _Number) -> _Made:
    return lambda batch_size: (block, _size(number, batch_size))


def _made(part: _Part, batch_size: int) -> Any:
    varies, make = part
    return make(batch_size) if varies else make

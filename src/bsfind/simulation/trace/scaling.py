"""From a few traces to programs of other batch sizes and of more steps.

Shapes, strides and sizes of a step are polynomials in the batch size, nearly all of them of degree
one. Where three traces consist of the same calls in the same order, each number in them is fitted.
What kernels allocate inside depends on thresholds, so the rules are asked again for the new shapes.
Where the traces differ in structure, there is no fit, and each batch size has to be traced.

A program of more steps repeats the last traced step, where that step is like the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from bsfind.errors import TargetError
from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, Entry

_Number = Callable[[int], int]
_Made = Callable[[int], Any]


class _Differs(Exception):  # noqa: N818 (a way out, not an error)
    """The traces are not of one structure."""


_Part = tuple[bool, Any]
"""Whether a part of a trace varies with the batch size, and the part, or the function that makes it."""


class Traces:
    """The traces of a workload by batch size, and those of other sizes that follow from them."""

    def __init__(self) -> None:
        self._steps = 0
        self._traced: dict[int, Sequence[Entry]] = {}
        self._scaled: Callable[[int], list[Entry]] | None = None
        self._may_scale = True

    @property
    def scale(self) -> bool:
        """Whether other batch sizes follow from those that were traced."""
        return self._scaled is not None

    def clear(self) -> None:
        """Forget all traces."""
        self._traced.clear()
        self._scaled = None

    def at(
        self,
        batch_size: int,
        steps: int,
        trace: Callable[[int, int], Sequence[Entry]],
        *,
        exact: bool,
    ) -> Sequence[Entry]:
        """Return the trace of a trial.

        The first batch sizes are traced. From the third on, others follow from these where the
        structure of the step allows it, and where they are multiples of the greatest common divisor of
        the traced ones: the user's code may refuse others.

        Args:
            batch_size: number of samples.
            steps: optimizer steps.
            trace: traces a number of steps at a batch size.
            exact: trace this very batch size.

        Raises:
            BsfindError: what `trace` raises.
        """
        if steps != self._steps:
            self._steps = steps
            self.clear()
        entries = self._traced.get(batch_size)
        if entries is not None:
            return entries
        follows = self._scaled is not None and batch_size % math.gcd(*self._traced) == 0
        if self._scaled is not None and follows and not exact:
            return self._scaled(batch_size)
        try:
            entries = trace(batch_size, steps)
        except TargetError:
            if follows:  # this size was not the only one: no other follows from any more
                self._scaled, self._may_scale = None, False
            raise
        self._remember(batch_size, entries)
        return entries

    def _remember(self, batch_size: int, entries: Sequence[Entry]) -> None:
        self._traced[batch_size] = entries
        # A batch of one is special: it has no stride of its own.
        several = sorted(size for size in self._traced if size > 1)
        if self._may_scale and self._scaled is None and len(several) >= 3:
            chosen = (several[0], several[len(several) // 2], several[-1])
            self._scaled = fit([(size, self._traced[size]) for size in chosen])


def fit(traces: Sequence[tuple[int, Sequence[Entry]]]) -> Callable[[int], list[Entry]] | None:
    """Return a function from the batch size to the trace; None if these traces do not allow it.

    Args:
        traces: three of different batch sizes, blocks numbered alike.
    """
    (size_1, first), (size_2, second), (size_3, third) = traces
    if not len(first) == len(second) == len(third):
        return None
    fitter = _Fitter((size_1, size_2, size_3))
    try:
        parts = [fitter.entry(three) for three in zip(first, second, third, strict=True)]
    except _Differs:
        return None
    return lambda batch_size: [_made(part, batch_size) for part in parts]


class _Fitter:
    """Fits the parts of three traces; each method raises `_Differs` where they are not alike."""

    def __init__(self, batch_sizes: tuple[int, int, int]) -> None:
        self._sizes = batch_sizes
        self._known: dict[tuple[int, int, int], _Part] = {}
        self._calls: dict[tuple[int, int, int], _Part] = {}

    def entry(self, three: tuple[Entry, Entry, Entry]) -> _Part:
        """Fit an entry."""
        first = three[0]
        if first[0] != three[1][0] or first[0] != three[2][0]:
            raise _Differs
        if first[0] == ALLOCATE:
            return self._allocation(three)
        if first[0] == CALL:
            return self._called(three)
        if not first == three[1] == three[2]:
            raise _Differs
        return False, first

    def _allocation(self, three: tuple[Entry, Entry, Entry]) -> _Part:
        kind, block, nbytes, operator = three[0]
        if any(other[1] != block or other[3] != operator for other in three[1:]):
            raise _Differs
        varies, number = self._number(nbytes, three[1][2], three[2][2])
        if not varies:
            return False, three[0]
        return True, lambda batch_size: (kind, block, number(batch_size), operator)

    def _called(self, three: tuple[Entry, Entry, Entry]) -> _Part:
        kind, rule, _, _, thread, operator = three[0]
        if any((e[1], e[4], e[5]) != (rule, thread, operator) for e in three[1:]):
            raise _Differs
        call = self._call(*(entry[2] for entry in three))
        outputs = self._outputs(*(entry[3] for entry in three))
        if not call[0] and not outputs[0]:
            return False, three[0]
        return True, lambda batch_size: (
            *(kind, rule, _made(call, batch_size), _made(outputs, batch_size), thread, operator),
        )

    def _call(self, *calls: Call) -> _Part:
        key = (id(calls[0]), id(calls[1]), id(calls[2]))
        known = self._calls.get(key)
        if known is None:
            known = self._calls[key] = self._fitted_call(*calls)
        return known

    def _fitted_call(self, first: Call, second: Call, third: Call) -> _Part:
        names = list(first.arguments)
        if list(second.arguments) != names or list(third.arguments) != names:
            raise _Differs
        values = self._value(
            tuple(first.arguments.values()),
            tuple(second.arguments.values()),
            tuple(third.arguments.values()),
        )
        outputs = self._value(first.outputs, second.outputs, third.outputs)
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

    def _outputs(self, *three: Any) -> _Part:
        first = three[0]
        sizes: list[_Part] = []
        for ours, *others in zip(*three, strict=True):
            if ours is None:
                if others != [None, None]:
                    raise _Differs
                sizes.append((False, None))
                continue
            if None in others or any(other[0] != ours[0] for other in others):
                raise _Differs
            varies, number = self._number(ours[1], others[0][1], others[1][1])
            sizes.append((True, _pair(ours[0], number)) if varies else (False, ours))
        if not any(varies for varies, _ in sizes):
            return False, first
        return True, lambda batch_size: tuple(_made(size, batch_size) for size in sizes)

    def _value(self, first: Any, second: Any, third: Any) -> _Part:
        if isinstance(first, TensorSpec):
            return self._spec(first, second, third)
        if isinstance(first, (list, tuple)):
            kind = type(first)
            if type(second) is not kind or type(third) is not kind:
                raise _Differs
            if not len(first) == len(second) == len(third):
                raise _Differs
            parts = [self._value(*items) for items in zip(first, second, third, strict=True)]
            if not any(varies for varies, _ in parts):
                return False, first
            return True, lambda batch_size: kind(_made(part, batch_size) for part in parts)
        if type(first) is int and type(second) is int and type(third) is int:
            return self._number(first, second, third)
        if type(first) is float:
            return False, first  # factors of means and the like: nothing is allocated by them
        if first != second or first != third:
            raise _Differs
        return False, first

    def _spec(self, first: TensorSpec, second: Any, third: Any) -> _Part:
        if first is second and first is third:
            return False, first
        for other in (second, third):
            if not isinstance(other, TensorSpec) or (other.dtype, other.on_gpu) != (
                *(first.dtype, first.on_gpu),
            ):
                raise _Differs
        shape = self._value(first.shape, second.shape, third.shape)
        stride = self._value(first.stride, second.stride, third.stride)
        if not shape[0] and not stride[0]:
            return False, first
        dtype, on_gpu = first.dtype, first.on_gpu
        return True, lambda batch_size: TensorSpec(
            _made(shape, batch_size), _made(stride, batch_size), dtype, on_gpu
        )

    def _number(self, first: int, second: int, third: int) -> _Part:
        if first == second == third:
            return False, first
        key = (first, second, third)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = (True, self._polynomial(first, second, third))
        return known

    def _polynomial(self, first: int, second: int, third: int) -> _Number:
        size_1, size_2, size_3 = self._sizes
        slope, rest = divmod(second - first, size_2 - size_1)
        if rest == 0 and first + slope * (size_3 - size_1) == third:
            offset = first - slope * size_1
            return lambda batch_size: offset + slope * batch_size
        # Newton's form through three points; what is not of degree two, either, has no whole
        # coefficients (but for chance), and is not fitted.
        slope_2, rest_2 = divmod(third - second, size_3 - size_2)
        curve, rest_3 = divmod(slope_2 - slope, size_3 - size_1)
        if rest or rest_2 or rest_3:
            raise _Differs
        return lambda batch_size: (
            first + (batch_size - size_1) * (slope + (batch_size - size_2) * curve)
        )


def _pair(block: int, number: _Number) -> _Made:
    return lambda batch_size: (block, number(batch_size))


def _made(part: _Part, batch_size: int) -> Any:
    varies, make = part
    return make(batch_size) if varies else make


def with_more_steps(program: Program, steps: int) -> Program | None:
    """Return a program that repeats the last step of another.

    Args:
        program: program of a trial.
        steps: how many the new program has in all.

    Returns:
        The program; None if its last steps differ, so that nothing follows for later ones, or if
        there are too few: two after those that warm up are needed (see `TrainingSteps`).
    """
    ends = [0, *(position for position, name in program.marks if name == "step_end")]
    traced = len(ends) - 1
    if steps <= traced:
        return program if steps == traced else None
    warm_up = max(place for place, step in enumerate(program.step_ends) if step.is_warm_up)
    if traced - warm_up < 3:
        return None
    events = program.trial_events
    sizes = [event for event in (*program.load_events, *events) if event >= 0]
    loaded = _allocations(program.load_events)
    first = [loaded + _allocations(events[:end]) for end in ends]
    found = [
        _pattern(events[ends[step] : ends[step + 1]], first[step - 1], first[step], sizes)
        for step in range(warm_up + 1, traced)
    ]
    if any(pattern != found[-1] for pattern in found):
        return None
    begin, end = ends[-2:]
    again = events[begin:end]
    count = _allocations(again)
    loaded_events = len(program.load_events)
    operators = program.operators
    longer = Program(
        load_events=program.load_events,
        trial_events=events[:end],
        operators=operators[: loaded_events + end],
        marks=[mark for mark in program.marks if mark[0] < end or mark == (end, "step_end")],
        optional=dict(program.optional),
        step_ends=[*program.step_ends, *[program.step_ends[-1]] * (steps - traced)],
    )
    marks = [(place - begin, name) for place, name in program.marks if begin <= place <= end]
    marks = marks[marks.index((0, "step_end")) + 1 :]
    for _ in range(steps - traced):
        again = [event if event >= 0 else event - count for event in again]
        start = len(longer.trial_events)
        longer.trial_events.extend(again)
        longer.operators.extend(operators[loaded_events + begin : loaded_events + end])
        longer.marks.extend((start + place, name) for place, name in marks)
        for place, smaller in program.optional.items():
            if begin <= place < end:
                longer.optional[start + place - begin] = smaller
    return longer


def _allocations(events: Sequence[int]) -> int:
    return sum(event >= 0 for event in events)


def _pattern(
    events: Sequence[int], first_before: int, first: int, sizes: Sequence[int]
) -> list[tuple[str, int]]:
    """Return what a step does, in terms that do not depend on which step it is.

    Args:
        events: events of the step.
        first_before: number of the first block of the step before it.
        first: number of its own first block.
        sizes: sizes of all blocks.
    """
    pattern = []
    for event in events:
        block = -event - 1
        if event >= 0:
            pattern.append(("allocate", event))
        elif block >= first:
            pattern.append(("release", block - first))
        elif block >= first_before:  # gradients, mostly
            pattern.append(("release of the step before", sizes[block]))
        else:
            pattern.append(("release of an older one", block))
    return pattern

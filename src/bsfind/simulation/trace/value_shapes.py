"""Sizes and integers that depend on values: those of a few steps with values, for other batch sizes.

Steps of small batches run with values (see value_steps.py). What each place in the user's code was
answered there is kept, call by call: how many elements a mask selects, the counts that `tolist`
returns. What is a polynomial of the batch size with every seed (the pairs in a batch) stays one. Else a
step without values gets the answers of the largest of these steps, in proportion: to the number of
elements that were possible, to the batch size, or as they are, whichever explains the difference
between two batch sizes best. Parts of a whole (tokens that are routed to experts, counts that add up to
the tokens) are rounded one after another, so that they still add up.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from bsfind.errors import BsfindError
from bsfind.records import Assumption
from bsfind.simulation.trace.scaling import number_at

_PACKAGE = f"{Path(__file__).resolve().parents[2]}/"
_TORCH = f"{Path(torch.__file__).resolve().parent}/"
_OPERATORS = f"{_TORCH}_ops.py"

_OUTERMOST = (f"{_PACKAGE}simulation/trace/tracer.py", f"{_PACKAGE}simulation/trace/value_steps.py")
"""What calls steps: a place is told by the functions inside."""

_MANY = 64
"""A size per sample from which on it is rounded to an integer: sizes are multiples of the batch size then,
and other batch sizes follow from a few traces (see scaling.py)."""

_EXACT = 4
"""Batch sizes from which on a polynomial through all of them is no accident."""

_CLEAR = 3
"""How much better a number must be explained as one that stays the same than as one that grows."""

_MOST_READ = 1 << 20
"""Elements of the largest tensor whose values are kept where the host reads it."""

_MOST_NAMED = 3

Site = tuple[object, ...]
"""A place in the code: what is asked, and the functions and positions in them that lead there."""


class ValuesNeededError(BaseException):
    """A step needs steps with values first: not an `Exception`, which the user's code may catch."""


@dataclass
class ValueStep:
    """What a step with values was answered.

    Attributes:
        seed: seed of the weights and of the batch.
        batch_size: number of samples.
        sizes: by place, how many elements were possible in each call, and how many there were.
        reads: by place, the values that the host read in each call.
        length: length of its sequences, where that is not the one that was asked for.
        most_computed: size of the results that the CPU may compute; None: any size.
        nbytes: by how many bytes the step exceeded what was allocated before it.
        computed_bytes: size of the results that the CPU computed.
    """

    seed: int
    batch_size: int
    length: int | None = None
    most_computed: int | None = None
    sizes: defaultdict[Site, list[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    reads: defaultdict[Site, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    nbytes: int = 0
    computed_bytes: int = 0


class ValueShapes:
    """Answers what depends on values, from steps with values.

    Attributes:
        steps: the steps with values.
        compared: two steps of shorter sequences, the larger batch first, that tell what the answers of
            `steps` are in proportion to; None: `steps` tell that.
        recorded: the step that runs with values now; None: none does.
        may_ask: whether steps with values can be asked for (`ValuesNeededError`).
        may_guess: whether a guess (all that is possible, say) is the answer where there are none: for passes
            of which no size is used.
        has_guessed: whether that happened.
        failure: why there are none, if they were tried.
        places: lines of the code whose answers were used.
    """

    def __init__(self) -> None:
        self.steps: list[ValueStep] = []
        self.compared: tuple[ValueStep, ValueStep] | None = None
        self.recorded: ValueStep | None = None
        self.may_ask = self.may_guess = self.has_guessed = False
        self.failure: BsfindError | None = None
        self.places: dict[str, None] = {}
        self._batch_size = 1
        self._calls: Counter[Site] = Counter()

    def forget(self) -> None:
        """Forget the steps with values."""
        self.steps.clear()
        self.places.clear()
        self.compared = None

    def begin(self, batch_size: int) -> None:
        """A step of a batch size begins."""
        self._batch_size = batch_size
        self._calls.clear()
        if self.recorded is not None:
            self.recorded.sizes.clear()
            self.recorded.reads.clear()

    def go_on(self, batch_size: int) -> None:
        """The evaluation pass after a step begins, with batches of this size."""
        self._batch_size = batch_size

    # --------------------------------------------------------------------------------- asking

    def note_size(self, operator: str, possible: int | None, size: int) -> None:
        """Count a call whose answer is known, and keep it if the step runs with values."""
        site = (operator, *_place(operator))
        self._calls[site] += 1
        if self.recorded is not None:
            self.recorded.sizes[site].append((possible or 0, size))

    def note_read(self, values: torch.Tensor) -> None:
        """Count a read of known values by the host, and keep them if the step runs with values."""
        site = ("read", *_place())
        self._calls[site] += 1
        is_float = values.is_floating_point() or values.is_complex()
        if self.recorded is not None and values.numel() <= (1 if is_float else _MOST_READ):
            self.recorded.reads[site].append(values.detach().clone())

    def size(self, operator: str, possible: int | None) -> int | None:
        """Return how many elements an operator returns; None: that cannot be told.

        Args:
            operator: its name.
            possible: how many elements are possible; None: any number.

        Raises:
            ValuesNeededError: steps with values can tell.
        """
        site = (operator, *_place(operator))
        call = self._calls[site]
        self._calls[site] += 1
        if self.recorded is not None:
            return None
        largest = self._largest_with(lambda step: step.sizes.get(site))
        if largest is None:
            if self.may_guess and not self.steps and possible is not None:
                self.has_guessed = True
                return possible
            self._ask()
            return None
        self._use_place(operator)
        answer = max(0, self._size(site, call, possible or 0, largest))
        return answer if possible is None else min(answer, possible)

    def read(self, shape: Sequence[int], *, is_decisive: bool) -> torch.Tensor | None:
        """Return the values that the host reads; None: that cannot be told.

        Args:
            shape: shape of the tensor that is read.
            is_decisive: whether steps with values are worth asking for.

        Raises:
            ValuesNeededError: steps with values can tell.
        """
        site = ("read", *_place())
        call = self._calls[site]
        self._calls[site] += 1
        if self.recorded is not None:
            self.recorded.reads[site]  # the CPU could not compute it
            return None
        largest = self._largest_with(lambda step: step.reads.get(site))
        if largest is None:
            if is_decisive and not any(site in step.reads for step in self.steps):
                self.has_guessed = self.has_guessed or self.may_guess
                if not self.may_guess:
                    self._ask()
            return None
        self._use_place()
        return self._read(site, call, shape, largest)

    def _ask(self) -> None:
        if self.may_ask:
            raise ValuesNeededError

    def _use_place(self, operator: str = "") -> None:
        for frame in _frames(operator)[:1]:
            self.places[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] = None

    # ------------------------------------------------------------------------------ answering

    @property
    def typical(self) -> ValueStep | None:
        """The step whose answers are used: of the largest batch, with the seed that needs most memory."""
        return max(self.steps, key=lambda step: (step.batch_size, step.nbytes), default=None)

    @property
    def spread(self) -> float:
        """By how much the memory of a step varied between seeds, at the largest size of both: 0.02 is 2 %."""
        by_size: defaultdict[int, dict[int, int]] = defaultdict(dict)
        for step in self.steps:
            by_size[step.batch_size][step.seed] = step.nbytes
        several = {size: sizes for size, sizes in by_size.items() if len(sizes) > 1}
        if not several:
            return 0.0
        sizes = several[max(several)].values()
        return max(sizes) / max(1, min(sizes)) - 1

    @property
    def assumptions(self) -> list[Assumption]:
        """What is assumed of values; nothing if no shape depends on them."""
        typical = self.typical
        if typical is None or not self.places:
            return []
        assumed = Assumption(
            what="shapes that depend on values",
            value=f"as in {len(self.steps)} steps on the CPU",
            why=f"{_listed(list(self.places))}: sizes are those of random weights and synthetic data at "
            f"batch size {typical.batch_size}, in proportion{self._of_shorter}",
        )
        return [assumed]

    @property
    def notes(self) -> dict[str, str]:
        """What the reader of the result must know, by code."""
        typical = self.typical
        if typical is None or not self.places:
            return {}
        seeds = len({step.seed for step in self.steps})
        return {
            "value_shapes": f"shapes depend on values in {_listed(list(self.places))}: they follow from "
            f"{len(self.steps)} steps with values on the CPU, with batch sizes up to "
            f"{typical.batch_size}{self._of_shorter}. Random weights and synthetic data make them "
            f"typical, not exact: between {seeds} seeds the memory of a step varied by "
            f"{self.spread:.1%}, and the largest counts"
        }

    @property
    def _of_shorter(self) -> str:
        if not self.compared:
            return ""
        sizes = " and ".join(str(step.batch_size) for step in reversed(self.compared))
        return (
            f"; how they grow with it was seen at batch sizes {sizes} with sequences of "
            f"{self.compared[0].length} tokens"
        )

    def _pair(self, largest: ValueStep) -> tuple[ValueStep, ValueStep | None]:
        """Return two steps whose comparison tells how answers grow with the batch."""
        return self.compared or (largest, self._smaller(largest))

    def _largest_with(self, answers: Callable[[ValueStep], object]) -> ValueStep | None:
        order = sorted(self.steps, key=lambda step: (step.batch_size, step.nbytes), reverse=True)
        return next((step for step in order if answers(step)), None)

    def _smaller(self, largest: ValueStep) -> ValueStep | None:
        """Return the next smaller batch, of the same seed if there is one."""
        smaller = [step for step in self.steps if step.batch_size < largest.batch_size]
        return max(smaller, key=lambda s: (s.seed == largest.seed, s.batch_size), default=None)

    def _size(self, site: Site, call: int, possible: int, largest: ValueStep) -> int:
        calls = largest.sizes[site]
        larger, smaller = self._pair(largest)
        many = larger.sizes.get(site, [])
        fewer = smaller.sizes.get(site, []) if smaller is not None else []
        if smaller is not None and _is_per_sample(many, larger, fewer, smaller):
            # One call for each sample: further samples are like those that were seen.
            was_possible, size = calls[call % len(calls)]
            alike = [item for item in calls if item[0] == possible]
            if was_possible != possible and alike:
                was_possible, size = alike[call % len(alike)]
            return size if was_possible == possible else size * possible // max(1, was_possible)
        at = call % len(calls)
        steps = [(step.batch_size, step.sizes.get(site, [])) for step in self.steps]
        expected, exact = (
            self._exact(at, [(size, [call[of] for call in calls]) for size, calls in steps])
            for of in (0, 1)
        )
        if expected == possible and exact is not None:
            return exact
        was_possible = calls[at][0]
        sizes = [size for _, size in calls]
        growth = (sum(number for number, _ in many), sum(number for number, _ in fewer))
        seen = [size for _, size in many], [size for _, size in fewer]
        law = _law(*seen, growth, _batch_sizes(larger, smaller))
        if law == "constant":
            return sizes[at]
        is_per_sample = was_possible * self._batch_size == possible * largest.batch_size
        if law == "share" and not is_per_sample:
            return _part(sizes, at, possible, was_possible, adds_up=self._adds_up(site))
        return self._of_batch(sizes, at, largest, adds_up=self._adds_up(site))

    def _exact(self, at: int, steps: Sequence[tuple[int, Sequence[int]]]) -> int | None:
        """Return a number that is the same polynomial of the batch size with every seed; None: it is not.

        Args:
            at: which of the numbers of a step it is.
            steps: the batch size and the numbers of each step.
        """
        if len({len(numbers) for _, numbers in steps}) > 1:
            return None
        known: dict[int, int] = {}
        for size, numbers in steps:
            if known.setdefault(size, numbers[at]) != numbers[at]:
                return None
        return number_at(known, self._batch_size) if len(known) >= _EXACT else None

    def _of_batch(
        self, numbers: Sequence[int], at: int, largest: ValueStep, *, adds_up: bool
    ) -> int:
        """Return a number in proportion to the batch size."""
        samples = largest.batch_size
        many = max(numbers) if adds_up else numbers[at]
        if many >= _MANY * samples:
            return self._batch_size * _part(numbers, at, 1, samples, adds_up=adds_up)
        return _part(numbers, at, self._batch_size, samples, adds_up=adds_up)

    def _adds_up(self, site: Site) -> bool:
        """Tell whether the sizes of a place are parts of a whole: their sum is in proportion, always."""
        sums = [
            (sum(size for _, size in step.sizes[site]), step.batch_size)
            for step in self.compared or self.steps
            if site in step.sizes
        ]
        return _are_in_proportion(sums)

    def _read(
        self, site: Site, call: int, shape: Sequence[int], largest: ValueStep
    ) -> torch.Tensor:
        calls = largest.reads[site]
        values = calls[call % len(calls)]
        count = int(torch.Size(shape).numel())
        if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            return _tiled(values, count).reshape(shape)
        larger, smaller = self._pair(largest)
        many = larger.reads.get(site, [])
        fewer = smaller.reads.get(site, []) if smaller is not None else []
        is_alike = [v.numel() for v in many] == [v.numel() for v in fewer]
        if not is_alike or values.numel() != count or not count:
            return _tiled(values, count).reshape(shape)
        first = sum(v.numel() for v in calls[: call % len(calls)])
        steps = [(step.batch_size, _flat(step.reads.get(site, []))) for step in self.steps]
        exact = [self._exact(first, steps)]
        if exact[0] is not None:
            exact += [self._exact(first + at, steps) for at in range(1, count)]
        if None not in exact:
            return torch.tensor(exact, dtype=values.dtype).reshape(shape)
        numbers = _flat(calls)
        seen = _flat(many), _flat(fewer)
        if _law(*seen, (0, 0), _batch_sizes(larger, smaller)) == "constant":
            return values.reshape(shape)
        sums = [
            (sum(int(v.sum()) for v in step.reads[site]), step.batch_size)
            for step in self.compared or self.steps
            if site in step.reads
        ]
        adds_up = _are_in_proportion(sums)
        scaled = [
            self._of_batch(numbers, first + at, largest, adds_up=adds_up) for at in range(count)
        ]
        return torch.tensor(scaled, dtype=values.dtype).reshape(shape)


def _flat(reads: Sequence[torch.Tensor]) -> list[int]:
    numbers: list[int] = torch.cat([values.flatten() for values in reads]).tolist() if reads else []
    return numbers


def _listed(places: Sequence[str]) -> str:
    shown = ", ".join(f"`{place}`" for place in places[:_MOST_NAMED])
    more = len(places) - _MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _batch_sizes(largest: ValueStep, smaller: ValueStep | None) -> tuple[int, int]:
    return largest.batch_size, smaller.batch_size if smaller is not None else 0


def _is_per_sample(
    calls: Sequence[object], largest: ValueStep, fewer: Sequence[object], smaller: ValueStep
) -> bool:
    return len(calls) != len(fewer) and (
        len(calls) * smaller.batch_size == len(fewer) * largest.batch_size
    )


def _law(
    numbers: Sequence[int],
    fewer: Sequence[int],
    possible: tuple[int, int],
    batch_sizes: tuple[int, int],
) -> str:
    """Return what numbers are in proportion to: "share" of what is possible, "batch", or "constant".

    Args:
        numbers: those of the larger batch.
        fewer: those of the smaller batch.
        possible: how many elements were possible in all, in the larger and the smaller batch.
        batch_sizes: sizes of both.
    """
    if not fewer or not batch_sizes[1]:
        return "share" if possible[0] else "batch"
    factors = {"batch": batch_sizes[0] / batch_sizes[1], "constant": 1.0}
    if possible[1]:
        factors = {"share": possible[0] / possible[1], **factors}
    if len(numbers) != len(fewer):
        numbers, fewer = [sum(numbers)], [sum(fewer)]

    def error(law: str) -> float:
        pairs = zip(numbers, fewer, strict=True)
        return sum(abs(number - other * factors[law]) for number, other in pairs)

    errors = {law: error(law) for law in factors}
    others = min(errors[law] for law in errors if law != "constant")
    if _CLEAR * errors["constant"] > others:  # a few samples vary by chance
        del errors["constant"]
    return min(errors, key=lambda law: errors[law])


def _are_in_proportion(sums: Sequence[tuple[int, int]]) -> bool:
    """Tell whether sums of different batch sizes are exactly in proportion to these."""
    (first, size), *others = sums
    return (
        first > 0
        and any(other[1] != size for other in others)
        and all(total * size == first * samples for total, samples in others)
    )


def _part(
    numbers: Sequence[int], at: int, numerator: int, denominator: int, *, adds_up: bool
) -> int:
    """Return numbers[at] * numerator / denominator; with `adds_up`, the rounded sums up to it decide."""
    before = sum(numbers[:at]) if adds_up else 0

    def rounded(number: int) -> int:
        return (2 * number * numerator + denominator) // (2 * max(1, denominator))

    return rounded(before + numbers[at]) - rounded(before)


def _tiled(values: torch.Tensor, count: int) -> torch.Tensor:
    flat = values.flatten()
    if not flat.numel():
        return torch.zeros(count, dtype=values.dtype)
    return flat.repeat(-(-count // flat.numel()))[:count]


def _frames(operator: str = "") -> list[FrameType]:
    """Return the frames of a step that are neither bsfind's nor torch's, innermost first.

    Those inside a call of the operator itself are left out: libraries write kernels of autocast in Python,
    which call it again, and in another precision are not there.

    Args:
        operator: its name, such as `aten::nonzero`, if it is one.
    """
    called = operator.replace("::", ".")
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_OUTERMOST):
        file = frame.f_code.co_filename
        if file == _OPERATORS and called and _is_of(frame.f_locals.get("self"), called):
            found.clear()
        elif not file.startswith((_PACKAGE, _TORCH)):
            found.append(frame)
        frame = frame.f_back
    return found


def _is_of(called: object, operator: str) -> bool:
    name = str(called)
    return name == operator or name.startswith(f"{operator}.")


def _place(operator: str = "") -> Site:
    return tuple(
        (frame.f_code.co_filename, frame.f_code.co_name, frame.f_lasti)
        for frame in _frames(operator)
    )

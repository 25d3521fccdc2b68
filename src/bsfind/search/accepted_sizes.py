"""Which batch sizes a model accepts: learned from the sizes that its code refuses.

Some models raise at certain sizes: statistics over groups of four samples, clips folded by eight, a queue
whose length the batch has to divide, a state that was made for one batch size. A size that is refused is
neither too large nor too small; others of the right form run. `AcceptedSizes` holds what is known of that
form, and asks for trials to find out more.

Pure: no torch, no clock, no I/O.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bsfind.trial import RefusedSizes, Trial

_SMALL_UNITS = (8, 4, 2, 1, 64, 48, 240, 256, 100, 420)
"""Sizes that are tried while none has run. Eight is a multiple of 2, 4 and 8 and divides most queues; models
for single samples and for pairs accept one and two; the others are multiples of other usual groups (3, 5, 6,
7, 10, 12, 15, 16, 32 …)."""

_LARGE_UNITS = (48, 240)
"""Multiples of these are tried near a size that was refused while smaller ones ran: most groups divide
them."""

_LARGEST_NUMBER = 512
_NUMBERS = 3
"""How many numbers of an error message are tried, up to `_LARGEST_NUMBER`: `shape '[6, -1]' is invalid`,
`expected 20, got 5` name the size that the model accepts."""

_INQUIRIES = 3
"""How often the form is looked for: sizes that are refused after that count as too large."""

_LONGEST = 1 << 24
"""More entries than any queue has."""

MayAsk = Callable[[int], bool]
Inquiry = Generator[int, Trial, None]
"""Yields batch sizes to try, receives their trials."""


class Form(Protocol):
    """A set of batch sizes."""

    def __contains__(self, batch_size: object) -> bool:
        """Tell whether a size has the form."""
        ...

    def at_most(self, batch_size: int) -> int:
        """Return the largest size of the form up to this one; 0 if there is none."""
        ...

    def above(self, batch_size: int) -> int:
        """Return the smallest size of the form above this one."""
        ...


@dataclass(frozen=True)
class Multiples:
    """All multiples of a number."""

    of: int

    def __contains__(self, batch_size: object) -> bool:
        return isinstance(batch_size, int) and batch_size % self.of == 0

    def at_most(self, batch_size: int) -> int:
        """Return the largest multiple up to this size (see `Form.at_most`)."""
        return batch_size - batch_size % self.of

    def above(self, batch_size: int) -> int:
        """Return the smallest multiple above this size (see `Form.above`)."""
        return self.at_most(batch_size) + self.of

    def __str__(self) -> str:
        return f"multiples of {self.of}"


EVERY_SIZE = Multiples(1)


@dataclass(frozen=True)
class Series:
    """Sizes that divide one another: `times` x 1, `ratio`, `ratio`², …, and those between.

    Attributes:
        times: what all are multiples of.
        ratio: 2: powers of two; 10: round numbers, 1, 2, 5, 10, 20, 50 …
    """

    times: int
    ratio: int

    def __contains__(self, batch_size: object) -> bool:
        return isinstance(batch_size, int) and self.at_most(batch_size) == batch_size

    def at_most(self, batch_size: int) -> int:
        """Return the largest size of the series up to this one (see `Form.at_most`)."""
        return max((size for size in self._around(batch_size) if size <= batch_size), default=0)

    def above(self, batch_size: int) -> int:
        """Return the smallest size of the series above this one (see `Form.above`)."""
        return min(size for size in self._around(batch_size) if size > batch_size)

    def _around(self, batch_size: int) -> list[int]:
        """Return the sizes of the series from below a size to above it."""
        power = self.times
        while power * self.ratio <= batch_size:
            power *= self.ratio
        return [power * n for n in ((1, 2, 5, 10) if self.ratio == 10 else (1, 2))]

    def __str__(self) -> str:
        name = "powers of two" if self.ratio == 2 else "1, 2, 5, 10, 20, 50 …"
        return name if self.times == 1 else f"{self.times} x {name}"


@dataclass(frozen=True)
class Divisors:
    """Sizes that divide a number, the length of a queue, say.

    Attributes:
        of: the number.
        multiple_of: what all are multiples of.
    """

    of: int
    multiple_of: int = 1

    def __contains__(self, batch_size: object) -> bool:
        fits = (
            isinstance(batch_size, int) and batch_size >= 1 and batch_size % self.multiple_of == 0
        )
        return fits and self.of % batch_size == 0  # type: ignore[operator]

    @functools.cached_property
    def _sizes(self) -> list[int]:
        small = [size for size in range(1, math.isqrt(self.of) + 1) if self.of % size == 0]
        return sorted(
            size for size in {*small, *(self.of // size for size in small)} if size in self
        )

    def at_most(self, batch_size: int) -> int:
        """Return the largest divisor up to this size (see `Form.at_most`)."""
        return max((size for size in self._sizes if size <= batch_size), default=0)

    def above(self, batch_size: int) -> int:
        """Return the smallest divisor above this size (see `Form.above`); none is `sys.maxsize`."""
        return min((size for size in self._sizes if size > batch_size), default=sys.maxsize)

    def __str__(self) -> str:
        return f"divisors of {self.of}"


class AcceptedSizes:
    """What is known of the batch sizes that a model accepts.

    Until the model refuses a size, every multiple of `multiple_of` counts as accepted.

    Args:
        multiple_of: every size that is tried is a multiple of it (`--multiple-of`).
        is_of_axis: whether sizes are those of an axis, of which models take only so many.

    Attributes:
        form: the form of sizes that may be tried.
        refused: the sizes that the model refused, with the messages of its errors.
    """

    def __init__(self, multiple_of: int = 1, *, is_of_axis: bool = False) -> None:
        self._is_of_axis = is_of_axis
        self._multiple_of = multiple_of
        self.form: Form = Multiples(multiple_of)
        self.refused: dict[int, str] = {}
        self._ran: set[int] = set()
        self._ran_before = 0  # the largest that had run when an inquiry began
        self._inquiries = 0

    def assume(self, found: RefusedSizes | None) -> None:
        """Begin with what a prediction found; trials may correct it."""
        if found is not None and found.multiple_of is not None:
            self.form = Multiples(math.lcm(self._multiple_of, found.multiple_of))

    def __contains__(self, batch_size: object) -> bool:
        return batch_size in self.form and batch_size not in self.refused

    def at_most(self, batch_size: int) -> int:
        """Return the largest size up to this one that may be tried; 0 if there is none."""
        size = self.form.at_most(batch_size)
        while size in self.refused:
            size = self.form.at_most(size - 1)
        return size

    def above(self, batch_size: int) -> int:
        """Return the smallest size above this one that may be tried."""
        size = self.form.above(batch_size)
        while size in self.refused:
            size = self.form.above(size)
        return size

    def has_run(self, batch_size: int) -> bool:
        """Tell whether a trial of this size has run."""
        return batch_size in self._ran

    @property
    def unit(self) -> int:
        """The number that all sizes that may be tried are multiples of."""
        return self.form.of if isinstance(self.form, Multiples) else self._multiple_of

    def record(self, trial: Trial) -> None:
        """Learn from a trial whether its size is accepted."""
        if trial.error_kind == "short_batch":
            return  # the bracket ends there
        if trial.is_refused:
            self.refused[trial.batch_size] = trial.message or ""
        elif trial.status == "ok":
            self._ran.add(trial.batch_size)

    def inquiry(self, refused: Trial, smallest: int, may_ask: MayAsk) -> Inquiry | None:
        """Return the questions that a refusal raises; None if nothing more is to be asked.

        Args:
            refused: the trial of a size of the form that was known.
            smallest: the smallest size that the search may ask for.
            may_ask: tells whether a size is within the limits of the search and not known.
        """
        if self._inquiries == _INQUIRIES:
            return None
        self._inquiries += 1
        return self._inquire(refused, smallest, may_ask)

    def _inquire(self, refused: Trial, smallest: int, may_ask: MayAsk) -> Inquiry:
        """Ask for sizes that most models accept until one runs; then relax the conditions.

        If none runs, the form stays: what was refused above the largest size that ran is too large for the
        model, whatever the reason.
        """
        before = self._ran_before = max(self._ran, default=0)
        if before and self._is_of_axis and (yield from self._is_limit(refused, may_ask)):
            return
        common = Multiples(math.gcd(*(size for size in self._ran if size >= self.unit)))
        if self.unit > self._multiple_of and refused.batch_size not in common:
            yield from self._narrow(before, common, may_ask)
            return
        if before and (yield from self._ask_divisors(refused, may_ask)):
            return
        for form in self._near(refused) if before else self._small(refused):
            sizes = (form.at_most(refused.batch_size), form.above(before)) if before else ()
            size = next(filter(may_ask, sizes or (form.above(smallest - 1),)), None)
            if size is not None and (yield size).status == "ok":
                yield from self._narrow(size, form, may_ask)
                return
        if before:
            both = [Series(self._multiple_of, ratio) for ratio in (10, 2)]
            for series in sorted(both, key=lambda s: s.at_most(refused.batch_size) in self.refused):
                if (yield from self._descend(series, before, refused.batch_size, may_ask)):
                    return
        if not any(size < before for size in self.refused):
            self.form = Multiples(self._multiple_of)

    def _is_limit(self, refused: Trial, may_ask: MayAsk) -> Generator[int, Trial, bool]:
        """Tell whether the error names the largest size that runs: the next one is refused again."""
        for named in reversed(_numbers_in(refused)):
            size = self.form.at_most(named)
            if not self._ran_before < size < refused.batch_size or not may_ask(size):
                continue
            above = self.form.above(size)
            if (yield size).status == "ok" and may_ask(above) and (yield above).is_refused:
                self._inquiries = _INQUIRIES  # the form is right: what was refused is too large
                return True
        return False

    def _ask_divisors(self, refused: Trial, may_ask: MayAsk) -> Generator[int, Trial, bool]:
        """Look for the largest size that divides what all that ran divide; return whether one runs."""
        largest = 0
        while of := self._divided(refused):
            form = Divisors(of, self._multiple_of)
            size = form.at_most(refused.batch_size)
            if size <= max(largest, self._ran_before) or not may_ask(size):
                break
            if (yield size).status == "ok":
                largest, self.form = size, form
        return largest > 0

    def _divided(self, refused: Trial) -> int:
        """Return a number that every size that ran divides, and no refused one; 0: none is likely.

        An error message about division names it. If all else failed, the least common multiple of these
        sizes times a power of two is tried.
        """
        common = math.lcm(*self._ran)
        speaks = "divi" in (refused.message or "").lower()
        numbers = _numbers_in(refused) if speaks else []
        named = [n for n in numbers if n % common == 0 and n > refused.batch_size]
        powers = range(_LONGEST.bit_length() if self._inquiries == _INQUIRIES else 0)
        others = [common << power for power in reversed(powers)]
        return next((n for n in (*named, *others) if self._may_be_divided(n)), 0)

    def _may_be_divided(self, number: int) -> bool:
        return number <= _LONGEST and not any(number % size == 0 for size in self.refused)

    def _descend(
        self, series: Series, ran: int, above: int, may_ask: MayAsk
    ) -> Generator[int, Trial, bool]:
        """Look for a size of a series far below the one that was refused; return whether one runs."""
        while True:
            middle = series.at_most(math.isqrt(ran * above))
            size = middle if middle > ran else series.above(ran)
            if size >= above or not may_ask(size):
                return False
            if (yield size).status == "ok":
                yield from self._narrow(size, series, may_ask)
                return True
            above = size

    def _small(self, refused: Trial) -> Iterator[Form]:
        """Yield forms to try while no size has run, without those that have a refused multiple."""
        for unit in (*_numbers(refused), *_SMALL_UNITS):
            of = math.lcm(unit, self._multiple_of)
            if unit == 1 or not any(size % of == 0 for size in self.refused):
                yield Multiples(of)

    def _near(self, refused: Trial) -> Iterator[Form]:
        """Yield forms to try near a size that was refused, while smaller ones ran."""
        for unit in (*_numbers(refused), *_LARGE_UNITS):
            yield Multiples(math.lcm(unit, self._multiple_of))
        yield Series(self._multiple_of, 2)
        yield Series(self._multiple_of, 10)

    def _narrow(self, ran: int, form: Form, may_ask: MayAsk) -> Inquiry:
        """Find the smallest number whose multiples run, given a size of the form that ran."""
        unit = self.unit
        may_be_right = self._ran_before and not self._speaks_against(unit, ran)
        if may_be_right and may_ask(ran - unit):
            yield ran - unit
        is_late = ran > 2 * unit  # one and two units are of any series
        if may_be_right and is_late and self.has_run(ran - unit):
            self._inquiries = _INQUIRIES  # the form is right: what was refused is too large
            return
        whole = of = form.of if isinstance(form, Multiples) else ran
        is_narrower = True
        while is_narrower:
            is_narrower = False
            for prime in _prime_factors(of):
                part = of
                while part % prime == 0 and not self._speaks_against(part // prime, ran):
                    part //= prime
                    runs = yield from self._test(ran, part, whole, may_ask)
                    if runs is False:
                        break
                    if runs:  # without room for a test, a smaller part may have it
                        of, is_narrower = part, True
        self.form = Multiples(of) if of < ran or isinstance(form, Multiples) else form

    def _speaks_against(self, part: int, ran: int) -> bool:
        """Tell whether multiples of a number cannot be the form, since one of them was refused.

        A refused size above one that ran may have been too large for the model.
        """
        if part % self._multiple_of:
            return True
        # Below all that ran, the reason may be that there are too few samples.
        fewest = min((size for size in self._ran if size >= part), default=ran)
        refused = (n for n in self.refused if n > fewest and (n < ran or not self._ran_before))
        return any(size % part == 0 for size in refused)

    def _test(
        self, ran: int, part: int, whole: int, may_ask: MayAsk
    ) -> Generator[int, Trial, bool | None]:
        """Return whether a multiple of a part runs that is not one of the whole; None: none can be tried.

        Sizes below the whole are not tried: a model may accept any number of samples below one group.
        """
        for size in (ran + part, ran - part):
            if size >= whole and may_ask(size):
                yield size
            if size >= whole and (size in self._ran or size in self.refused):
                return size in self._ran
        return None

    def found(self) -> RefusedSizes | None:
        """Return what is known of the sizes that the model accepts; None if it has refused none."""
        if not self.refused:
            return None
        of = self.form.of if isinstance(self.form, Multiples) else None
        several = sum(size in self.form for size in self._ran) > 1
        narrower = of is None or of > self._multiple_of
        return RefusedSizes(
            batch_sizes=tuple(sorted(self.refused)),
            error=next(iter(self.refused.values())),
            multiple_of=of if several else None,
            accepted=str(self.form) if several and narrower else None,
        )


def _numbers(refused: Trial) -> Sequence[int]:
    """Return sizes that an error message may name, small ones first."""
    found = _numbers_in(refused)
    wanted = [n for n in found if 1 < n <= _LARGEST_NUMBER and n != refused.batch_size]
    return wanted[:_NUMBERS]


def _numbers_in(refused: Trial) -> list[int]:
    text = refused.message or ""
    return sorted({int(digits) for digits in re.findall(r"(?<![\w.:])\d{1,8}(?![\w.]*\w)", text)})


def _prime_factors(number: int) -> list[int]:
    """Return the primes that divide a number, small ones first."""
    primes = []
    prime = 2
    while prime * prime <= number:
        if number % prime == 0:
            primes.append(prime)
            while number % prime == 0:
                number //= prime
        prime += 1
    return [*primes, number] if number > 1 else primes

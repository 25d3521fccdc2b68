"""Which batch size to try next: a binary search that is told where to look.

The bracket (largest that ran, smallest that did not) is the truth; guesses only say where to probe
it. A guess is tried from just below, then from just above, each within the tolerance: a right one
ends the search after two trials. A wrong one costs a few: the probes then move away from it in
doubling steps, and halve the bracket whenever they fail to shrink it.

Pure: no torch, no clock, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from bsfind.records import Trial

__all__ = ["FIRST_BATCH_SIZE", "Guess", "LineThroughPeaks", "Search"]

FIRST_BATCH_SIZE = 5
"""Small enough to run nearly everywhere; not 1, which batch normalisation refuses in training; and a
prime that few layers have as a factor (see `_prime_near`)."""

_SHARE_AFTER_ONE_TRIAL = 0.85
"""What of the guess after one trial the second one tries: a guess from a small batch is rough, and
an out-of-memory trial teaches less than one that ran."""

_STEPS_BELOW_EXPECTED = (0.97, 0.85)
"""Where to look when what was expected does not run: it is seldom far off."""

_GUIDED_PROBES = 2
"""How many probes beside a guess may fail to halve the bracket before it is halved without it."""


class Guess(Protocol):
    """Guesses the largest batch size that fits, from the trials so far."""

    def __call__(self, trials: Sequence[Trial]) -> int | None:
        """Return the guess, or None for want of knowledge."""
        ...


class Search:
    """Finds the largest batch size whose trial is `ok`.

    Args:
        smallest: smallest batch size to ask for.
        largest: largest batch size to ask for.
        tolerance: stop when the gap between the largest that ran and the smallest that did not is
            at most this part of the former, or 1.
        guess: where to look, once a trial has run.
        first: the first batch size to ask for (moved into the limits).
        expected: what the answer is expected to be: the search begins there.

    Whatever the trials say, it never asks twice, never asks outside its limits, ends after
    O(log largest) trials, and its result is a batch size whose trial was `ok`.
    """

    def __init__(
        self,
        *,
        smallest: int,
        largest: int,
        tolerance: float,
        guess: Guess,
        first: int = FIRST_BATCH_SIZE,
        expected: int | None = None,
    ) -> None:
        if not 1 <= smallest <= largest:
            raise ValueError(f"no batch size between {smallest} and {largest}")
        self._smallest = smallest
        self._largest = largest
        self._tolerance = tolerance
        self._guess = guess
        self._expected = expected
        if expected is not None:
            first = self._just_below(expected)
        self._first = min(max(first, smallest), largest)
        self._trials: list[Trial] = []
        self._best: Trial | None = None
        self._failed: int | None = None
        # Probes above a guess, while nothing has failed: from the third on, each doubles its step.
        self._raised = 0 if expected is None else 1
        # The bracket's width when it was last halved, and the guided probes since.
        self._halved_width = self._largest
        self._guided = 0

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials so far, in the order in which they ran."""
        return tuple(self._trials)

    @property
    def best(self) -> Trial | None:
        """The trial of the largest batch size that ran."""
        return self._best

    @property
    def smallest_failed(self) -> int | None:
        """The smallest batch size above the best one that did not run."""
        return self._failed

    @property
    def is_proven(self) -> bool:
        """Whether nothing within the tolerance is left to try: the best is the largest."""
        if any(trial.status == "timeout" for trial in self._trials):
            return False
        if self._best is None:
            return self._failed is not None and self._failed <= self._smallest
        return self._best.batch_size >= self._largest or (
            self._failed is not None
            and self._failed - self._best.batch_size <= self._gap(self._best.batch_size)
        )

    def record(self, trial: Trial) -> None:
        """Take in the trial of the batch size that was asked for."""
        self._trials.append(trial)
        if trial.status == "ok":
            if self._best is None or trial.batch_size > self._best.batch_size:
                self._best = trial
        elif self._failed is None or trial.batch_size < self._failed:
            self._failed = trial.batch_size
        if self._best and self._failed and self._failed < self._best.batch_size:
            self._failed = None  # it ran above: what failed below says nothing about the maximum

    def next(self) -> int | None:
        """Return the next batch size to try; None when the search is over."""
        if not self._trials:
            return self._first
        if self.is_proven or self._trials[-1].status == "timeout":
            return None
        if self._best is None:
            assert self._failed is not None
            return max(self._below_failures(self._failed), self._smallest)
        return self._inside_limits(self._probe(self._best.batch_size))

    def _below_failures(self, failed: int) -> int:
        """Return a batch size below those that have all failed."""
        if self._expected is None or len(self._trials) > 1 + len(_STEPS_BELOW_EXPECTED):
            return failed // 2
        if len(self._trials) == 1:
            return failed - self._gap(failed)  # mostly it is off by one or two, and this proves it
        return min(failed - 1, int(failed * _STEPS_BELOW_EXPECTED[len(self._trials) - 2]))

    def _gap(self, batch_size: int) -> int:
        """Return how wide the bracket may be at its end, around a batch size."""
        return max(1, int(self._tolerance * batch_size))

    def _inside_limits(self, batch_size: int) -> int:
        assert self._best is not None
        above = self._largest if self._failed is None else self._failed - 1
        return max(self._best.batch_size + 1, min(batch_size, above))

    def _probe(self, best: int) -> int:
        guess = self._look_near(best)
        if self._failed is None:
            return self._probe_above(best, guess)
        width = self._failed - best
        if width <= self._halved_width // 2:
            self._halved_width, self._guided = width, 0
        if guess is None or self._guided == _GUIDED_PROBES or self._num_ran == 1:
            self._halved_width, self._guided = width, 0
            return self._halfway(best, self._failed)
        self._guided += 1
        if guess >= self._failed:
            # It says that what failed fits: the truth is most likely just below, or nowhere near.
            self._guided = _GUIDED_PROBES
            return max(self._failed - self._gap(self._failed), best + width // 2)
        below = self._just_below(guess)
        return below if best < below else best + self._gap(best)

    def _look_near(self, best: int) -> int | None:
        """Return the guess: what was expected, as long as no trial contradicts it."""
        expected = self._expected
        if expected is not None and best <= expected and (self._failed or expected + 1) > expected:
            return expected
        return self._guess(self._trials)

    @property
    def _num_ran(self) -> int:
        return sum(trial.status == "ok" for trial in self._trials)

    def _halfway(self, best: int, failed: int) -> int:
        """Return the middle of the bracket: of its logarithm where it spans magnitudes."""
        is_first_failure = len(self._trials) == self._num_ran + 1
        if failed > 4 * best and not is_first_failure:
            return math.isqrt(best * failed)
        return best + (failed - best) // 2

    def _probe_above(self, best: int, guess: int | None) -> int:
        if guess is None:
            return best + self._step_without_guess(best)
        if len(self._trials) == 1 and self._expected is None:
            return _prime_near(int(_SHARE_AFTER_ONE_TRIAL * guess), above=best)
        # From just below the guess to just above it, and then ever further.
        step = self._gap(best) << max(0, self._raised - 2) if self._raised else 1
        self._raised += 1
        return max(self._just_below(guess), best + step)

    def _step_without_guess(self, best: int) -> int:
        """Return how far above the best to look: doubling, but near an expectation not at once."""
        if self._expected is None:
            return best
        self._raised += 1
        return max(1, best >> max(0, 11 - 2 * self._raised))  # 3 %, 12 %, a half, twice

    def _just_below(self, guess: int) -> int:
        """Return a batch size from which a right guess is within the tolerance."""
        return guess - self._gap(guess - self._gap(guess) // 2) // 2


class LineThroughPeaks:
    """Guesses from the peaks of the trials alone: the line through the two largest that ran.

    After one trial, a line through what is resident and what the forward pass kept.

    Args:
        capacity_bytes: what the search may use.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes

    def __call__(self, trials: Sequence[Trial]) -> int | None:
        """Return the batch size at which the line meets the capacity."""
        ran = sorted((t for t in trials if t.status == "ok"), key=lambda trial: trial.batch_size)
        if not ran:
            return None
        if len(ran) == 1:
            return self._from_one(ran[0])
        low, high = ran[-2:]
        allocated = self._crossing(low, high, low.peak_allocated_bytes, high.peak_allocated_bytes)
        reserved = self._crossing(low, high, low.peak_reserved_bytes, high.peak_reserved_bytes)
        if allocated is None or reserved is None:
            return allocated or reserved
        # Fragmentation keeps the allocator from filling the device (the allocated line promises
        # too much), flushing its cache lets it go on where the reserved line has ended.
        return (allocated + max(reserved, high.batch_size)) // 2

    def _from_one(self, trial: Trial) -> int | None:
        if not trial.activation_bytes or trial.resident_bytes is None:
            return None
        usable = self._capacity - trial.resident_bytes
        return max(trial.batch_size, int(usable * trial.batch_size / trial.activation_bytes))

    def _crossing(
        self, low: Trial, high: Trial, at_low: int | None, at_high: int | None
    ) -> int | None:
        if at_low is None or at_high is None or at_high <= at_low:
            return None
        slope = (at_high - at_low) / (high.batch_size - low.batch_size)
        return high.batch_size + int((self._capacity - at_high) / slope)


def _prime_near(number: int, *, above: int) -> int:
    """Return the largest prime that is not above `number`, or `number` if `above` is in the way.

    A prime divides few sizes in memory but those that are proportional to the batch, so what grows
    with the batch can be told from what is fixed.
    """
    candidates = range(number, above, -1)
    return next((n for n in candidates if _is_prime(n)), max(number, above + 1))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, math.isqrt(number) + 1))

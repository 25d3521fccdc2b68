"""Which batch size to try next: a binary search that is told where to look.

The bracket (largest that ran, smallest that did not) is the truth; guesses only say where to probe
it. A guess is tried from just below, then from just above, each within the tolerance: a right one
ends the search after two trials. A wrong one costs a few: the probes then move away from it in
doubling steps, and halve the bracket whenever they fail to shrink it.

Every probe is rounded to a size that the model accepts (see `AcceptedSizes`). A size that the model's own
code refuses says nothing about memory: the search asks which sizes run, and goes on among those.

Pure: no torch, no clock, no I/O.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Protocol

from bsfind.records import Trial
from bsfind.search.accepted_sizes import AcceptedSizes, Inquiry

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
            at most this part of the former, or 1; 0 is exact.
        guess: where to look, once a trial has run.
        first: the first batch size to ask for (moved into the limits).
        expected: what the answer is expected to be: the search begins there.
        sizes: which batch sizes the model accepts, as far as is known; learns from every trial.

    Whatever the trials say, it never asks twice, never asks outside its limits or for a size that
    `sizes` rules out, ends after O(log largest) trials, and its result is a batch size whose trial was
    `ok`.
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
        sizes: AcceptedSizes | None = None,
    ) -> None:
        if not 1 <= smallest <= largest:
            raise ValueError(f"no batch size between {smallest} and {largest}")
        self.sizes = sizes or AcceptedSizes()
        self._smallest = self.sizes.above(smallest - 1)
        self._largest = self.sizes.at_most(largest)
        self._tolerance = tolerance
        self._guess = guess
        self._expected = expected
        if expected is not None:
            first = self._just_below(expected)
        self._first = self._among(first, self._smallest - 1, self._largest)
        self._trials: dict[int, Trial] = {}
        self._best: Trial | None = None
        self._failed: int | None = None
        # Which sizes does the model accept? What is asked of it, and the size that is asked for now.
        self._inquiry: Inquiry | None = None
        self._asked: int | None = None
        # Probes above a guess, while nothing has failed: from the third on, each doubles its step.
        self._raised = 0 if expected is None else 1
        # The bracket's width when it was last halved, and the guided probes since.
        self._halved_width = self._largest
        self._guided = 0

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials so far, in the order in which they ran."""
        return tuple(self._trials.values())

    @property
    def best(self) -> Trial | None:
        """The trial of the largest batch size that ran."""
        return self._best

    @property
    def smallest_failed(self) -> int | None:
        """The smallest batch size above the best one that did not run and ends the search there.

        One that the model refused counts only if it has the form of those that it accepts: then nothing
        but its size can be the reason.
        """
        best = self._best.batch_size if self._best else 0
        refused = (t.batch_size for t in self._trials.values() if t.error_kind == "refused")
        too_large = [n for n in refused if n > best and n in self.sizes.form and self._best]
        return min((*too_large, *(() if self._failed is None else (self._failed,))), default=None)

    @property
    def is_proven(self) -> bool:
        """Whether nothing within the tolerance is left to try: the best is the largest."""
        if any(trial.status == "timeout" for trial in self._trials.values()):
            return False
        failed = self.smallest_failed
        if self._best is None:
            return failed is not None and self.sizes.at_most(failed - 1) < self._smallest
        best = self._best.batch_size
        if failed is not None and failed - best <= self._gap(best):
            return True
        return self.sizes.above(best) >= min(failed or self._largest + 1, self._largest + 1)

    def be_exact(self) -> None:
        """Leave nothing to the tolerance from now on: halve the bracket to its end."""
        self._tolerance = 0.0
        self._expected, self._guess = None, lambda _: None

    def record(self, trial: Trial) -> None:
        """Take in the trial of the batch size that was asked for, or what a second one says of it."""
        self._trials[trial.batch_size] = trial
        self.sizes.record(trial)
        ran = [t for t in self._trials.values() if t.status == "ok"]
        self._best = max(ran, key=lambda t: t.batch_size, default=None)
        best = self._best.batch_size if self._best else 0
        # What failed below the best says nothing about the maximum.
        failed = (t for t in self._trials.values() if t.status != "ok" and not t.is_refused)
        self._failed = min((t.batch_size for t in failed if t.batch_size > best), default=None)
        self._inquire(trial)

    def _inquire(self, trial: Trial) -> None:
        """Begin to ask which sizes the model accepts, or go on asking."""
        self._asked = None
        if self._inquiry is None:
            if trial.error_kind != "refused" or trial.batch_size not in self.sizes.form:
                return
            self._inquiry = self.sizes.inquiry(trial, self._smallest, self._may_ask)
            if self._inquiry is None:
                return
            self._asked = next(self._inquiry, None)
        else:
            with contextlib.suppress(StopIteration):
                self._asked = self._inquiry.send(trial)
        if self._asked is None:
            self._inquiry = None

    def _may_ask(self, batch_size: int) -> bool:
        above = self._failed or self._largest + 1
        within = self._smallest <= batch_size <= self._largest
        return within and batch_size < above and batch_size not in self._trials

    def next(self) -> int | None:
        """Return the next batch size to try; None when the search is over."""
        if not self._trials:
            return self._first if self._smallest <= self._largest else None
        if any(trial.status == "timeout" for trial in self._trials.values()):
            return None
        if self._asked is not None:
            return self._asked
        if self.is_proven:
            return None
        if self._best is not None:
            return self._inside_limits(self._probe(self._best.batch_size))
        return self._below_failures()

    def _below_failures(self) -> int | None:
        """Return a batch size below those that have all failed; None if none is left."""
        if self._failed is None:
            # Refusals alone: of one sample, by batch norm, which leaves all others.
            size = self.sizes.above(self._smallest - 1)
            return size if self._may_ask(size) and not self._has_only_refusals else None
        below = self._step_below(self._failed)
        size = max(self.sizes.at_most(below), self.sizes.above(self._smallest - 1))
        return size if self._may_ask(size) else None

    @property
    def _has_only_refusals(self) -> bool:
        return all(trial.error_kind == "refused" for trial in self._trials.values())

    def _step_below(self, failed: int) -> int:
        if self._expected is None or len(self._trials) > 1 + len(_STEPS_BELOW_EXPECTED):
            return failed // 2
        if len(self._trials) == 1:
            return failed - self._gap(failed)  # mostly it is off by one or two, and this proves it
        return min(failed - 1, int(failed * _STEPS_BELOW_EXPECTED[len(self._trials) - 2]))

    def _gap(self, batch_size: int) -> int:
        """Return how wide the bracket may be at its end, around a batch size."""
        return max(1, int(self._tolerance * batch_size))

    def _among(self, batch_size: int, below: int, most: int) -> int:
        """Return the accepted size nearest to `batch_size` of those above `below` and up to `most`."""
        size = self.sizes.at_most(min(batch_size, most))
        return size if size > below else self.sizes.above(below)

    def _inside_limits(self, batch_size: int) -> int:
        assert self._best is not None
        failed = self.smallest_failed
        most = self._largest if failed is None else failed - 1
        return self._among(batch_size, self._best.batch_size, most)

    def _probe(self, best: int) -> int:
        guess, failed = self._look_near(best), self.smallest_failed
        if failed is None:
            return self._probe_above(best, guess)
        width = failed - best
        if width <= self._halved_width // 2:
            self._halved_width, self._guided = width, 0
        if guess is None or self._guided == _GUIDED_PROBES or self._num_ran == 1:
            self._halved_width, self._guided = width, 0
            return self._halfway(best, failed)
        self._guided += 1
        if guess >= failed:
            # It says that what failed fits: the truth is most likely just below, or nowhere near.
            self._guided = _GUIDED_PROBES
            return max(failed - self._gap(failed), best + width // 2)
        below = self._just_below(guess)
        return below if best < below else best + self._gap(best)

    def _look_near(self, best: int) -> int | None:
        """Return the guess: what was expected, as long as no trial contradicts it."""
        expected, failed = self._expected, self.smallest_failed
        if expected is not None and best <= expected and (failed or expected + 1) > expected:
            return expected
        return self._guess(self.trials)

    @property
    def _num_ran(self) -> int:
        return sum(trial.status == "ok" for trial in self._trials.values())

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
            unit = self.sizes.unit
            share = int(_SHARE_AFTER_ONE_TRIAL * guess)
            return unit * _prime_near(share // unit, above=best // unit)
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

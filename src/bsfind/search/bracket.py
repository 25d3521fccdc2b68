"""Which batch size to try next: a binary search that an estimate guides.

The bracket (the largest size that ran, the smallest above it that did not) is the truth; estimates only say
where to probe it. An estimate is probed from just below, then from just above, each within the tolerance: a
right one ends the search after two trials. A wrong one costs a few: the probes then move away from it in
doubling steps, and halve the bracket whenever they fail to shrink it.

Every probe is rounded to a size that the model accepts (see `AcceptedSizes`). A size that the model's own
code refuses says nothing about memory: the search asks which sizes run, and goes on among those.

Pure: no torch, no clock, no I/O.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

from bsfind.search.accepted_sizes import AcceptedSizes, Inquiry
from bsfind.trial import Trial

FIRST_BATCH_SIZE = 5
"""Small enough to run nearly everywhere; not 1, which batch normalisation refuses in training; and a
prime that few layers have as a factor (see `_prime_near`)."""

_SHARE_AFTER_ONE_TRIAL = 0.85
"""Share of the estimate that the second trial tries: an estimate from one small batch is rough, and a trial
that runs out of memory teaches less than one that runs."""

_SHARES_BELOW_EXPECTED = (0.97, 0.85)
"""Where to look when the expected size fails, and the size just below it too."""

_USUAL = 32
"""Sizes of an axis are multiples of it where nothing speaks against that: kernels are made for them."""

_FAR_ABOVE = (64, 8)
"""Times the first size that are tried where it and all smaller ones run out of memory: the memory of some
steps falls with the batch size, as that of a buffer that is divided by it."""

_DIVISORS_ABOVE_EXPECTED = (128, 32, 8, 2, 1)
"""Steps above the expected size where nothing has failed, as divisors of the best size: the expectation is
seldom far off, so the steps begin at a few percent and reach doubling."""

_GUIDED_PROBES = 2
"""How many probes beside an estimate may fail to halve the bracket before it is halved without it."""

Estimate = Callable[[Sequence[Trial]], int | None]
"""Estimates the largest batch size that fits from the trials so far; None: not enough is known."""


class Bracket:
    """Finds the largest batch size whose trial is `ok`.

    Args:
        smallest: smallest batch size to ask for.
        largest: largest batch size to ask for.
        tolerance: stop when the gap between the largest that ran and the smallest that did not is
            at most this part of the former, or 1; 0 is exact.
        estimate: where to look, once a trial has run.
        first: the first batch size to ask for (moved into the limits).
        expected: the answer that a prediction expects: the search begins there.
        is_of_axis: whether sizes are those of an axis: their multiples of 32 are tried first.
        sizes: what is known of the sizes that the model accepts; learns from every trial.

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
        estimate: Estimate,
        first: int = FIRST_BATCH_SIZE,
        expected: int | None = None,
        sizes: AcceptedSizes | None = None,
        is_of_axis: bool = False,
    ) -> None:
        if not 1 <= smallest <= largest:
            raise ValueError(f"no batch size between {smallest} and {largest}")
        self.sizes = sizes or AcceptedSizes()
        self._smallest = self.sizes.above(smallest - 1)
        self._largest = self.sizes.at_most(largest)
        self._tolerance = tolerance
        self._estimate = estimate
        self._expected = expected
        self._is_of_axis = is_of_axis
        if expected is not None:
            first = self._just_below(expected)
        self._first = self._nearest(first, self._smallest - 1, self._largest)
        self._trials: dict[int, Trial] = {}
        self._is_ended = False
        self._best: Trial | None = None
        self._failed: int | None = None
        # Questions about the sizes that the model accepts, and the size that they ask for now.
        self._inquiry: Inquiry | None = None
        self._asked: int | None = None
        # Probes since nothing has failed; the first trial counts if it probes the expected size.
        self._num_probes_above = 0 if expected is None else 1
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
        if failed is not None and self._trials[failed].error_kind == "untraceable":
            return False  # it may fit
        return self._is_settled

    @property
    def _is_settled(self) -> bool:
        """Whether no size is left between the best and the smallest that failed."""
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
        self._expected, self._estimate = None, lambda _: None

    def be_coarse(self, tolerance: float) -> None:
        """Leave at least so much to the tolerance from now on, and halve the bracket once there is one."""
        self._tolerance = max(self._tolerance, tolerance)
        if self.smallest_failed is not None:
            self._expected, self._estimate = None, lambda _: None

    def end(self) -> None:
        """Ask for no more sizes, whatever is left."""
        self._is_ended = True

    @property
    def is_ended(self) -> bool:
        """Whether it has ended before the answer was there."""
        return self._is_ended and not self._is_settled

    def record(self, trial: Trial) -> None:
        """Take in the trial of a batch size that was asked for; a second one replaces the first.

        Where fewer samples were delivered, no larger size than that runs: replays of larger ones, which
        made no batch, are forgotten.
        """
        self._trials[trial.batch_size] = trial
        self.sizes.record(trial)
        if trial.delivered_batch_size is not None:
            self._largest = self.sizes.at_most(min(self._largest, trial.delivered_batch_size))
            self._trials = {
                size: known
                for size, known in self._trials.items()
                if size <= self._largest or known.status != "ok"
            }
        self._find_ends()
        self._inquire(trial)

    def forget(self, is_forgotten: Callable[[Trial], bool]) -> None:
        """Forget trials that do not hold any more."""
        self._trials = {n: t for n, t in self._trials.items() if not is_forgotten(t)}
        self._find_ends()

    def _find_ends(self) -> None:
        ran = [t for t in self._trials.values() if t.status == "ok"]
        self._best = max(ran, key=lambda t: t.batch_size, default=None)
        best = self._best.batch_size if self._best else 0
        # What failed below the best says nothing about the maximum.
        failed = (t for t in self._trials.values() if t.status != "ok" and not t.is_refused)
        self._failed = min((t.batch_size for t in failed if t.batch_size > best), default=None)

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
        if self._is_ended or any(t.status == "timeout" for t in self._trials.values()):
            return None
        if self._asked is not None:
            return self._asked
        if any(trial.delivered_batch_size for trial in self.trials) and self._may_ask(
            self._largest
        ):
            return self._largest
        if self._is_settled:
            return self._far_above() if self._best is None else None
        if self._best is None:
            return self._below_failures()
        best, failed = self._best.batch_size, self.smallest_failed
        estimate = self._current_estimate(best, failed)
        if failed is None:
            return self._nearest(self._probe_above(best, estimate), best, self._largest)
        return self._nearest(self._probe_between(best, failed, estimate), best, failed - 1)

    def _nearest(self, batch_size: int, below: int, most: int) -> int:
        """Return the accepted size nearest to `batch_size` of those above `below` and up to `most`."""
        size = self.sizes.at_most(min(batch_size, most))
        return size if size > below else self.sizes.above(below)

    # Where every size has failed so far.

    def _below_failures(self) -> int | None:
        """Return a batch size below those that have all failed; None if none is left."""
        if self._failed is None:
            # Refusals alone: of one sample, by batch norm, which leaves all others.
            size = self.sizes.above(self._smallest - 1)
            only_refusals = all(t.error_kind == "refused" for t in self._trials.values())
            return size if self._may_ask(size) and not only_refusals else None
        below = self._probe_below(self._failed)
        size = max(self.sizes.at_most(below), self.sizes.above(self._smallest - 1))
        return size if self._may_ask(size) else None

    def _far_above(self) -> int | None:
        """Return a size far above small ones that all ran out of memory, twice: it may take less."""
        kinds = {trial.error_kind for trial in self.trials if trial.status != "oom"}
        if self._first >= max(_FAR_ABOVE) or kinds - {"batch_norm"}:
            return None
        sizes = (self.sizes.at_most(min(self._largest, n * self._first)) for n in _FAR_ABOVE)
        return next((n for n in sizes if n > self._first and n not in self._trials), None)

    def _probe_below(self, failed: int) -> int:
        """Return where to look below the smallest size: half, but near an expectation not at once."""
        num_failed = len(self._trials)
        if self._expected is None or num_failed > 1 + len(_SHARES_BELOW_EXPECTED):
            return failed // 2
        if num_failed == 1:
            return failed - self._gap(failed)  # an expectation is often off by one or two
        return min(failed - 1, int(failed * _SHARES_BELOW_EXPECTED[num_failed - 2]))

    # Where sizes have run.

    def _current_estimate(self, best: int, failed: int | None) -> int | None:
        """Return the expected size as long as no trial contradicts it, then what the trials tell."""
        expected = self._expected
        if expected is not None and best <= expected and (failed is None or expected < failed):
            return expected
        return self._estimate(self.trials)

    def _probe_above(self, best: int, estimate: int | None) -> int:
        """Return where to look while nothing has failed."""
        if estimate is None:
            return best + self._unguided_step(best)
        if len(self._trials) == 1 and self._expected is None:
            unit = self.sizes.unit
            share = int(_SHARE_AFTER_ONE_TRIAL * estimate)
            if self._is_of_axis:
                return max(share - share % _USUAL, best + 1)
            return unit * _prime_near(share // unit, above=best // unit)
        return max(self._just_below(estimate), best + self._guided_step(best))

    def _guided_step(self, best: int) -> int:
        """Return the least step above the best: 1, a gap, and then twice as much with every probe.

        The first probe is just below the estimate, the second a gap further is just above it. Where both
        run, the estimate is too low.
        """
        self._num_probes_above += 1
        if self._num_probes_above == 1:
            return 1
        doublings = max(0, self._num_probes_above - 3)
        return self._gap(best) << doublings

    def _unguided_step(self, best: int) -> int:
        """Return how far above the best to look without an estimate: twice, or a few percent first."""
        if self._expected is None:
            return best
        self._num_probes_above += 1
        last = len(_DIVISORS_ABOVE_EXPECTED) - 1
        return max(1, best // _DIVISORS_ABOVE_EXPECTED[min(self._num_probes_above - 2, last)])

    def _probe_between(self, best: int, failed: int, estimate: int | None) -> int:
        """Return where to look between the best size and the smallest that failed."""
        width = failed - best
        has_halved = width <= self._halved_width // 2
        if has_halved:
            self._halved_width, self._guided = width, 0
        num_ran = sum(trial.status == "ok" for trial in self._trials.values())
        if estimate is None or self._guided == _GUIDED_PROBES or num_ran == 1:
            self._halved_width, self._guided = width, 0
            return self._middle(best, failed, is_first_failure=len(self._trials) == num_ran + 1)
        if estimate >= failed:
            # It says that a size fits which failed: the truth is just below, or nowhere near.
            self._guided = _GUIDED_PROBES
            return max(failed - self._gap(failed), best + width // 2)
        self._guided += 1
        below = self._just_below(estimate)
        return below if best < below else best + self._gap(best)

    @staticmethod
    def _middle(best: int, failed: int, *, is_first_failure: bool) -> int:
        """Return the middle of the bracket: of its logarithm where it spans magnitudes."""
        if failed > 4 * best and not is_first_failure:
            return math.isqrt(best * failed)
        return best + (failed - best) // 2

    def _gap(self, batch_size: int) -> int:
        """Return how wide the bracket may be at its end, around a batch size."""
        return max(1, int(self._tolerance * batch_size))

    def _just_below(self, estimate: int) -> int:
        """Return the size half a gap below an estimate.

        The next probe is a whole gap above this one: a right estimate lies between the two. The gap is
        taken at a size within it, since it depends on the size.
        """
        around = estimate - self._gap(estimate) // 2
        return estimate - self._gap(around) // 2


def _prime_near(number: int, *, above: int) -> int:
    """Return the largest prime that is not above `number`, or `number` if `above` is in the way.

    A prime divides few sizes in memory except those that are proportional to the batch, so they can be
    distinguished from fixed ones.
    """
    candidates = range(number, above, -1)
    return next((n for n in candidates if _is_prime(n)), max(number, above + 1))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, math.isqrt(number) + 1))

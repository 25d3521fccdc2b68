"""Whether the sizes just below the recommended one run too.

Near the limit, fragmentation, the choice of workspaces and the rounding of the allocator let some sizes fit
while smaller ones do not. Such an island is no size to recommend: a slightly smaller batch, of a loader that
drops nothing, of one GPU more, would run out of memory. The recommendation moves down to a size without
failures just below it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator

from bsfind.errors import TimeLimitError
from bsfind.results import GlobalBatch
from bsfind.results import Neighbours as Found
from bsfind.search.accepted_sizes import Form
from bsfind.search.confirm import Confirmation
from bsfind.trial import Trial

SHARE = 0.03
"""Part of a size below which other sizes count as near."""

FEWEST = 2
"""Sizes below the recommended one that count as near, however small it is."""

MOST = 24
"""Sizes that are replayed, where more are near."""

_NEAREST = 4
"""How many of these are the nearest; the others are spaced evenly."""

_FARTHEST = 0.9
"""Part of the first size down to which one without failures is looked for: an island ends sooner."""

_MOST_TRIALS = 80
"""Trials after which none is looked for any more."""


def near_below(size: int, sizes: Form, least: int) -> list[int]:
    """Return the sizes within 3 % below a size, the nearest first: at least two, at most 24.

    Where there are more than 24 (above about 800), they are a sample: the four nearest, and others that are
    spaced evenly down to the last 3 %. Of the 600 sizes below 20,000, that is one in thirty.

    Args:
        size: the size.
        sizes: the sizes that may be tried: multiples of `--multiple-of`, those that the model accepts.
        least: no size below this one is returned.
    """
    lowest = max(least, size - int(SHARE * size))
    near = list(itertools.islice(_down_from(size, sizes, least), FEWEST))
    near += itertools.takewhile(
        lambda smaller: smaller >= lowest,
        itertools.islice(_down_from(near[-1] if near else size, sizes, least), MOST),
    )
    if len(near) <= MOST:
        return near
    spaces = MOST - _NEAREST - 1
    spaced = (sizes.at_most(size - (size - lowest) * n // spaces) for n in range(1, spaces + 1))
    sample = {*near[:_NEAREST], *spaced, sizes.above(lowest - 1)}
    return sorted((n for n in sample if lowest <= n < size), reverse=True)


def _down_from(size: int, sizes: Form, least: int) -> Iterator[int]:
    while (size := sizes.at_most(size - 1)) >= max(1, least):
        yield size


class Neighbours:
    """Tries sizes below the recommended one, and moves the recommendation down where one fails.

    Args:
        confirmation: has the recommended size, and confirms a smaller one.
        sizes: the sizes that may be tried.
        least: no size below this one is recommended.
        busy_s: returns the processor time of all trials so far, seconds.
    """

    def __init__(
        self, confirmation: Confirmation, sizes: Form, least: int, busy_s: Callable[[], float]
    ) -> None:
        self._confirmation = confirmation
        self._sizes = sizes
        self._least = max(1, least)
        self._busy_s = busy_s
        self._begun_s: float | None = None
        self._first: tuple[Trial, GlobalBatch | None] | None = None
        self._runs: dict[int, bool] = {}
        self._estimated: Collection[int] = ()
        self._trials = 0
        self._all_tried = self._is_over = False

    def take_in(self, ran: Iterable[int], estimated: Collection[int]) -> None:
        """Take in sizes that ran in the search within the budget, and those that a replay says run."""
        self._runs |= dict.fromkeys(ran, True)
        self._estimated = estimated

    def settle(
        self,
        below: Callable[[int], Iterable[int]],
        run: Callable[[int], Trial],
        *,
        most_s: float = math.inf,
        each_s: float = 0.0,
    ) -> bool:
        """Try sizes below the recommended one; return whether it stays.

        If one fails, the largest smaller size without failures just below it is confirmed. If there is none
        near, the first stays.

        Args:
            below: returns the sizes that must run below a size, the nearest first.
            run: runs a trial of a size within the budget.
            most_s: processor time of these trials, seconds.
            each_s: what a trial is expected to take of it, seconds.
        """
        confirmation = self._confirmation
        before = confirmation.trial
        if before is None or self._is_over:
            return True
        if self._first is None:
            self._first, self._begun_s = (before, confirmation.global_batch), self._busy_s()

        def runs(size: int) -> bool | None:
            if size not in self._runs:
                assert self._begun_s is not None
                if self._busy_s() - self._begun_s + each_s > most_s:
                    return None
                self._trials += 1
                try:
                    trial = run(size)
                except TimeLimitError:  # the answer is there: what comes after it has no time
                    return None
                if trial.status == "timeout" or trial.error_kind == "untraceable":
                    return None
                self._runs[size] = trial.status == "ok"
            return self._runs[size]

        size, self._all_tried = self._without_failures(before.batch_size, below, runs)
        if size == before.batch_size:
            return True
        if size:
            confirmation.confirm(size)
            if confirmation.trial is not before:
                return confirmation.trial is None  # memory leaks there
        confirmation.trial, confirmation.global_batch = self._first
        self._is_over, self._all_tried = True, False
        return True

    def _without_failures(
        self,
        size: int,
        below: Callable[[int], Iterable[int]],
        runs: Callable[[int], bool | None],
    ) -> tuple[int, bool]:
        """Return the largest size up to this one without failures just below it, and whether all were tried.

        0 if there is none near: there are more islands than it is worth to look at.
        """
        assert self._first is not None
        least = max(self._least, math.ceil(_FARTHEST * self._first[0].batch_size))
        while size >= least and self._trials < _MOST_TRIALS:
            failed = None
            for smaller in below(size):
                does = runs(smaller)
                if does is None:
                    return size, False
                if not does and smaller in self._sizes:  # else the model refuses it: it is not near
                    failed = smaller
                    break
            if failed is None:
                return size, True
            size = self._sizes.at_most(failed - 1)
            while size >= least and runs(size) is False:
                size = self._sizes.at_most(size - 1)
        return 0, False

    @property
    def found(self) -> Found | None:
        """What is known; None if nothing was tried."""
        confirmed = self._confirmation.trial
        if confirmed is None or self._first is None:
            return None
        size, first = confirmed.batch_size, self._first[0].batch_size
        failed = (n for n, runs in self._runs.items() if not runs and n in self._sizes)
        return Found(
            ran=tuple(sorted(n for n, runs in self._runs.items() if runs and n < size)),
            estimated=tuple(sorted(n for n in self._estimated if n not in self._runs)),
            failed=tuple(sorted(failed)),
            moved_from=None if first == size else first,
            all_tried=self._all_tried,
        )

"""Times smaller batch sizes than the largest that fits: from which one on is training no faster?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsfind.search.accepted_sizes import AcceptedSizes, Form
from bsfind.settings import SearchLimits
from bsfind.trial import Trial

SATURATION = 0.98
"""Throughput is saturated from this share of the best samples/s on."""

_STEPS = 6
"""Steps of a trial that is run for its speed: the first one warms up."""


class Timing:
    """Runs trials for their speed alone.

    Args:
        limits: limits of the search.
        sizes: the sizes that the model accepts.
        run: runs a trial, given the batch size and the number of steps.

    Attributes:
        trials: the trials that ran, in their order.
    """

    def __init__(
        self, limits: SearchLimits, sizes: AcceptedSizes, run: Callable[[int, int], Trial]
    ) -> None:
        self._limits = limits
        self._sizes = sizes
        self._steps = max(limits.steps, _STEPS)
        self._run = run
        self.trials: list[Trial] = []

    def down_from(self, largest: int, known: Sequence[Trial], *, finely: bool = False) -> None:
        """Time smaller and smaller sizes, as long as they are as fast as the best.

        Args:
            largest: the size to begin below.
            known: trials of the search.
            finely: see `next_throughput_probe`.
        """
        while True:
            probe = next_throughput_probe(
                [*known, *self.trials],
                largest,
                smallest=self._limits.least,
                sizes=self._sizes,
                finely=finely,
            )
            if probe is None or self._time(probe).status != "ok":
                return

    def fastest_up_to(self, largest: int, known: Sequence[Trial]) -> int:
        """Return the smallest size within 2 % of the best samples/s, at most `largest`."""
        if all(trial.batch_size != largest for trial in known):
            self._time(largest)
        self.down_from(largest, known, finely=True)
        fits = [
            trial
            for trial in (*known, *self.trials)
            if self._limits.least <= trial.batch_size <= largest and trial.batch_size in self._sizes
        ]
        fastest = saturation(fits)
        return largest if fastest is None else fastest.batch_size

    def _time(self, batch_size: int) -> Trial:
        trial = self._run(batch_size, self._steps)
        self._sizes.record(trial)
        self.trials.append(trial)
        return trial


def saturation(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the smallest batch size whose samples/s is within 2 % of the best."""
    timed = [trial for trial in trials if trial.samples_per_s is not None]
    best = max((trial.samples_per_s or 0.0 for trial in timed), default=0.0)
    enough = [trial for trial in timed if (trial.samples_per_s or 0.0) >= SATURATION * best]
    return min(enough, key=lambda trial: trial.batch_size, default=None)


def next_throughput_probe(
    trials: Sequence[Trial], largest: int, *, smallest: int, sizes: Form, finely: bool = False
) -> int | None:
    """Return the next batch size to time; None when it is known where throughput saturates.

    Halves the batch size while throughput stays within 2 % of the best, which finds saturation to a factor
    of two.

    Args:
        trials: all trials that ran.
        largest: largest size to consider.
        smallest: smallest size to consider.
        sizes: the sizes that may be tried.
        finely: whether to bisect between the last two sizes, which finds saturation to an eighth.
    """
    enough = saturation(trials)
    if enough is None:
        return None
    floor = sizes.above(smallest - 1)
    fast = min(enough.batch_size, largest)
    tried = {trial.batch_size for trial in trials}
    half = max(sizes.at_most(fast // 2), floor)
    slower = [size for size in tried if half <= size < fast]
    if not slower:
        return half if half < fast else None
    if not finely:
        return None
    slow = max(slower)
    middle = sizes.at_most((slow + fast) // 2)
    is_between = slow < middle < fast and fast - slow > max(1, fast // 8)
    return middle if is_between else None

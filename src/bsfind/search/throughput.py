"""From which batch size on is training no faster? Times smaller sizes than the largest that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsfind.records import Trial
from bsfind.search.accepted_sizes import AcceptedSizes, Form
from bsfind.settings import SearchLimits

SATURATION = 0.98
"""Throughput counts as saturated from this part of the best samples/s on."""

_STEPS = 6
"""Steps of a trial that is run for its speed: the first one warms up."""


class Timing:
    """Runs trials for their speed alone.

    Args:
        limits: of the search.
        sizes: which the model accepts.
        run: runs a trial of so many samples for so many steps, and tells who wants to know.

    Attributes:
        trials: that were run, in their order.
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
            largest: from where.
            known: trials of the search.
            finely: find the smallest size that is as fast to an eighth, not to a factor of two.
        """
        while True:
            probe = next_throughput_probe(
                [*known, *self.trials],
                largest,
                smallest=self._limits.min_batch_size,
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
            if self._limits.min_batch_size <= trial.batch_size <= largest
            and trial.batch_size in self._sizes
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

    Halves the batch size while throughput stays within 2 % of the best. That tells saturation to a
    factor of two; finely, what lies between the last two is bisected to an eighth.

    Args:
        trials: that ran, whatever for.
        largest: from where to look downwards.
        smallest: down to where.
        sizes: which may be tried.
        finely: whether to bisect in the end.
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

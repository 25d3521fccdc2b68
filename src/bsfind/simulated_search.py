"""The search in one precision where a trial is a replay: cheap, so nothing is left to guesses."""

from __future__ import annotations

from collections.abc import Iterator

from bsfind.confirmation import COMFORT_OF_REPLAYS
from bsfind.precision_search import PrecisionSearch
from bsfind.records import ReportWarning
from bsfind.search import LineThroughPeaks, Search

__all__ = ["SimulatedSearch"]

_COARSE = 0.005

_STEPS = 6
"""Steps of a replay within the budget: by then most allocators have settled, or never will."""


class SimulatedSearch(PrecisionSearch):
    """Finds the largest and the recommended batch size in one precision on a simulated device.

    Both exactly, whatever tolerance was asked for. The recommended size is not confirmed in a
    process of its own, since nothing runs there either, but found by replays with the budget as the
    limit.
    """

    _comfort = COMFORT_OF_REPLAYS

    def _tolerance(self) -> float:
        # A guess is probed from this far: from nearer, one that is slightly wrong is no help.
        return max(_COARSE, self._limits.tolerance)

    def _find_maximum(self) -> None:
        super()._find_maximum()
        for batch_size in self._between(self._search):
            trial = self._try(batch_size)
            self._search.record(trial)
            self._on_trial(trial)

    def _between(self, search: Search) -> Iterator[int]:
        """Yield the middle between the largest that fits and the smallest that does not, and so on."""
        while search.best is not None and search.smallest_failed is not None:
            fits, fails = search.best.batch_size, search.smallest_failed
            if fails - fits <= 1 or search.trials[-1].status == "timeout":
                return
            middle = (fits + fails) // 2
            self._report_progress("trying", middle)
            yield middle

    def _find_recommendation(self) -> None:
        if self._limits.objective == "fastest":
            self._warnings.append(
                ReportWarning(
                    code="speed_unknown",
                    message="a prediction knows no speed: the largest batch size is recommended, "
                    "not the fastest",
                )
            )
        super()._find_recommendation()

    def _time_up_to(self, largest: int) -> int:
        return largest  # nothing runs that could be timed

    def look_at_fragmentation(self) -> None:
        """Try nothing: `--compare expandable-segments` predicts what that buys."""

    def _largest_within_budget(self, largest: int) -> int:
        """Return the largest batch size up to `largest` that replays within the budget."""
        found = self._largest_that_replays(largest, accumulates=False)
        if self._confirmation.accumulates_from(found):
            found = self._largest_that_replays(found, accumulates=True)
        return found

    def _largest_that_replays(self, largest: int, *, accumulates: bool) -> int:
        steps = max(self._limits.steps, min(self._limits.confirm_steps, _STEPS))
        smallest = min(self._limits.min_batch_size, largest)
        guess = LineThroughPeaks(self._budget)
        search = Search(
            smallest=smallest,
            largest=largest,
            tolerance=self._tolerance(),
            guess=guess,
            first=guess(self._search.trials) or largest,
        )
        while (batch_size := search.next()) is not None:
            self._report_progress("trying", batch_size)
            search.record(self._confirmation.run(batch_size, steps, accumulates=accumulates))
        for batch_size in self._between(search):
            search.record(self._confirmation.run(batch_size, steps, accumulates=accumulates))
        return smallest if search.best is None else search.best.batch_size

"""The search in one precision where a trial is a replay: cheap, so nothing is left to guesses."""

from __future__ import annotations

from bsfind.records import ReportWarning, Trial
from bsfind.search.bracket import LineThroughPeaks, Search
from bsfind.search.confirm import COMFORT_OF_REPLAYS
from bsfind.search.precision import PrecisionSearch

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
        """Find the maximum, to within the tolerance and then exactly, and have it traced itself.

        Most trials follow from the traces of others, which do not tell whether the model accepts their
        size. A size that is asked for again is traced: where it is refused, the search goes on.
        """
        super()._find_maximum()
        self._search.be_exact()
        traced: Trial | None = None
        while not any(t.leak or t.status == "timeout" for t in self._search.trials):
            super()._find_maximum()
            best = self._search.best
            if best is None or best is traced or self._batch_size is not None:
                return
            traced = self._try(best.batch_size)
            self._search.record(traced)

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
            sizes=self._sizes,
        )
        for is_exact in (False, True):
            if is_exact:
                search.be_exact()
            while (batch_size := search.next()) is not None:
                self._report_progress("trying", batch_size)
                search.record(self._confirmation.run(batch_size, steps, accumulates=accumulates))
        return smallest if search.best is None else search.best.batch_size

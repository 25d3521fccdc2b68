"""What a search does differently on a GPU and on a simulated one.

A measured trial costs seconds: the search stops within the tolerance, estimates save trials, and a fresh
process confirms the recommended size. A replay costs milliseconds: both sizes are found exactly, and there is
nothing to time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsfind.records import DeviceInfo, ReportWarning, Trial
from bsfind.search.bracket import Bracket
from bsfind.search.estimate import line_through_peaks

if TYPE_CHECKING:
    from bsfind.search.precision import PrecisionSearch

_COARSE = 0.005
"""Tolerance of the first round of a search that ends exactly. An estimate is probed from this far: from
nearer, one that is slightly wrong is no help."""

_REPLAYED_STEPS = 6
"""Steps of a replay within the budget: by then most allocators have reached a steady state, or never will."""


class Measured:
    """Trials run on a GPU.

    Attributes:
        is_measured: whether trials run: their times are known, and a process can confirm the answer.
        reductions: shares of a size that are tried where the allocator keeps flushing its cache at it.
    """

    is_measured = True
    reductions: tuple[float, ...] = (0.98, 0.94, 0.88, 0.82, 0.76)  # one process for each

    def tolerance(self, asked: float) -> float:
        """Return the tolerance of the search, given the one that was asked for."""
        return asked

    def find_maximum(self, search: PrecisionSearch) -> None:
        """Try sizes until the maximum is known, to within the tolerance."""
        search.try_all(search.bracket)

    def largest_within_budget(self, search: PrecisionSearch, largest: int) -> int:
        """Return what may be the largest batch size up to `largest` that leaves the headroom."""
        budget = search.budget
        if search.confirmation.accumulates_from(largest) and search.runner.model is not None:
            budget -= search.runner.model.model_bytes  # the gradients of the micro-batches before
        estimate = search.estimate.within_budget(budget, search.bracket)
        return largest if estimate is None else min(largest, max(1, estimate))

    def size_to_confirm(self, search: PrecisionSearch, largest: int) -> int:
        """Find out where throughput saturates; return the size to confirm."""
        if search.limits.objective == "fastest":
            return search.timing.fastest_up_to(largest, search.bracket.trials)
        search.timing.down_from(largest, search.bracket.trials)
        return largest


class Simulated:
    """Trials are replays of traced allocations.

    Attributes: see `Measured`.
    """

    is_measured = False
    reductions: tuple[float, ...] = tuple(1 - percent / 100 for percent in range(1, 25))

    def tolerance(self, asked: float) -> float:
        """Return the tolerance of the first round; a second one is exact."""
        return max(_COARSE, asked)

    def find_maximum(self, search: PrecisionSearch) -> None:
        """Find the maximum, to within the tolerance and then exactly, and have it traced itself.

        Most trials follow from the traces of others, which do not tell whether the model accepts their
        size. A size that is asked for again is traced: where it is refused, the search goes on.
        """
        bracket = search.bracket
        search.try_all(bracket)
        bracket.be_exact()
        traced: Trial | None = None
        while not any(t.leak or t.status == "timeout" for t in bracket.trials):
            search.try_all(bracket)
            best = bracket.best
            if best is None or best is traced or search.is_check:
                return
            traced = search.try_size(best.batch_size)
            bracket.record(traced)

    def largest_within_budget(self, search: PrecisionSearch, largest: int) -> int:
        """Return the largest batch size up to `largest` that replays within the budget."""
        found = self._largest_that_replays(search, largest, accumulates=False)
        if search.confirmation.accumulates_from(found):
            found = self._largest_that_replays(search, found, accumulates=True)
        return found

    def _largest_that_replays(
        self, search: PrecisionSearch, largest: int, *, accumulates: bool
    ) -> int:
        limits, budget = search.limits, search.budget
        smallest = min(limits.min_batch_size, largest)
        bracket = Bracket(
            smallest=smallest,
            largest=largest,
            tolerance=self.tolerance(limits.tolerance),
            estimate=lambda trials: line_through_peaks(trials, budget),
            first=line_through_peaks(search.bracket.trials, budget) or largest,
            sizes=search.sizes,
        )
        steps = max(limits.steps, min(limits.confirm_steps, _REPLAYED_STEPS))
        for is_exact in (False, True):
            if is_exact:
                bracket.be_exact()
            while (batch_size := bracket.next()) is not None:
                search.report_progress("trying", batch_size)
                trial = search.confirmation.run(batch_size, steps, accumulates=accumulates)
                bracket.record(trial)
        return smallest if bracket.best is None else bracket.best.batch_size

    def size_to_confirm(self, search: PrecisionSearch, largest: int) -> int:
        """Return the size to confirm: the largest, since nothing runs that could be timed."""
        if search.limits.objective == "fastest":
            search.warnings.append(_SPEED_UNKNOWN)
        return largest


_SPEED_UNKNOWN = ReportWarning(
    code="speed_unknown",
    message="a prediction knows no speed: the largest batch size is recommended, not the fastest",
)

Policy = Measured | Simulated


def policy_for(device: DeviceInfo) -> Policy:
    """Return how trials on a device are used."""
    return Measured() if device.kind == "cuda" else Simulated()

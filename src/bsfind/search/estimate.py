"""Estimates of the largest batch size that fits, which tell the bracket where to probe.

There are three sources: a prediction for the same GPU (see `predict_first`), a replay of the allocations that
trials recorded (see `replayed`), and a line through the peaks of the trials. `Estimate` asks the best one
that has an answer. A wrong estimate costs trials, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bsfind.records import PrecisionResult, Trial
from bsfind.search.bracket import Bracket
from bsfind.search.forecast import largest_that_fits
from bsfind.simulation.allocator.recording import Recording
from bsfind.simulation.allocator.settings import AllocatorSettings


class Estimate:
    """Estimates batch sizes in one precision.

    Args:
        capacity_bytes: what the search may use.
        recordings: what trials asked of the allocator, by batch size; grows with the search.
        allocator: how the allocator is configured.
        predicted: the result of a prediction; None without one.
    """

    def __init__(
        self,
        capacity_bytes: int,
        recordings: Mapping[int, Recording],
        allocator: AllocatorSettings,
        predicted: PrecisionResult | None = None,
    ) -> None:
        self._capacity = capacity_bytes
        self._recordings = recordings
        self._allocator = allocator
        self._predicted = predicted

    @property
    def expected(self) -> int | None:
        """The maximum that is expected before anything has run."""
        return self._predicted.max_batch_size if self._predicted else None

    def maximum(self, trials: Sequence[Trial]) -> int | None:
        """Return what the trials say of the maximum; None if they say too little."""
        estimate = self._from_trials(trials, self._capacity)
        largest_that_ran = max((t.batch_size for t in trials if t.status == "ok"), default=0)
        return None if estimate is None else max(estimate, largest_that_ran)

    def within_budget(self, budget_bytes: int, bracket: Bracket) -> int | None:
        """Return the largest size within a budget below the capacity, once the maximum is known."""
        predicted, best, failed = self._predicted, bracket.best, bracket.smallest_failed
        if predicted is None or predicted.recommended_batch_size is None or best is None:
            return self._from_trials(bracket.trials, budget_bytes)
        expected = predicted.max_batch_size or best.batch_size
        if best.batch_size <= expected and (failed is None or expected < failed):
            return predicted.recommended_batch_size
        # The recommended size is as much too large as the maximum was.
        return predicted.recommended_batch_size + min(0, best.batch_size - expected)

    def _from_trials(self, trials: Sequence[Trial], limit_bytes: int) -> int | None:
        recordings = list(self._recordings.values())
        replayed = largest_that_fits(recordings, limit_bytes, self._allocator)
        return replayed if replayed is not None else line_through_peaks(trials, limit_bytes)


def line_through_peaks(trials: Sequence[Trial], limit_bytes: int) -> int | None:
    """Return the batch size at which the line through the two largest that ran meets a limit.

    After one trial, the line goes through what is resident and what the forward pass kept. None if no trial
    ran, or their peaks do not grow.
    """
    ran = sorted((t for t in trials if t.status == "ok"), key=lambda trial: trial.batch_size)
    if not ran:
        return None
    high = ran[-1]
    if len(ran) == 1:
        if not high.activation_bytes or high.resident_bytes is None:
            return None
        usable = limit_bytes - high.resident_bytes
        return max(high.batch_size, int(usable * high.batch_size / high.activation_bytes))
    low = ran[-2]

    def crossing(at_low: int | None, at_high: int | None) -> int | None:
        if at_low is None or at_high is None or at_high <= at_low:
            return None
        slope = (at_high - at_low) / (high.batch_size - low.batch_size)
        return high.batch_size + int((limit_bytes - at_high) / slope)

    allocated = crossing(low.peak_allocated_bytes, high.peak_allocated_bytes)
    reserved = crossing(low.peak_reserved_bytes, high.peak_reserved_bytes)
    if allocated is None or reserved is None:
        return allocated or reserved
    # Fragmentation keeps the allocator from filling the device: the allocated line promises too much.
    # It goes on where the reserved line has ended, by flushing its cache.
    return (allocated + max(reserved, high.batch_size)) // 2

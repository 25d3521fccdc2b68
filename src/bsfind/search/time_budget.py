"""How much time is left for an answer of a worker, and for the whole search."""

from __future__ import annotations

import copy
import math
import time

from bsfind.errors import TimeLimitError
from bsfind.units import format_duration

_START_S = 300.0
"""Time to load a large model from a cold file system, whatever `--trial-timeout` is."""


class TimeBudget:
    """A clock that starts when it is made.

    Args:
        trial_timeout_s: longest time for one trial, seconds.
        total_s: longest time for everything, seconds; None: no limit.
    """

    def __init__(self, trial_timeout_s: float, total_s: float | None) -> None:
        self._start = time.monotonic()
        self._trial_timeout_s = trial_timeout_s
        self._total_s = total_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._start

    @property
    def is_spent(self) -> bool:
        """Whether the time for everything is over."""
        return self._total_s is not None and self.elapsed_s >= self._total_s

    def with_trials_of(self, seconds: float) -> TimeBudget:
        """Return the same clock for trials that may take no longer than this, in seconds."""
        clock = copy.copy(self)
        clock._trial_timeout_s = min(self._trial_timeout_s, seconds)
        return clock

    def for_trial(self, times: float = 1.0) -> float:
        """Return how many seconds the next trial may take.

        Args:
            times: its length, as a multiple of a trial of the search.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        return self._at_most(self._trial_timeout_s * max(1.0, times))

    def for_start(self) -> float:
        """Return how many seconds a worker may take to get ready: import torch, build the model.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        return self._at_most(max(self._trial_timeout_s, _START_S))

    def _at_most(self, seconds: float) -> float:
        self.check()
        return min(seconds, self.left_s)

    @property
    def left_s(self) -> float:
        """Seconds that are left for everything."""
        return math.inf if self._total_s is None else max(0.0, self._total_s - self.elapsed_s)

    def check(self) -> None:
        """Make sure that time is left.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        if self._total_s is not None and self.is_spent:
            raise TimeLimitError(
                f"the time budget of {format_duration(self._total_s)} is spent",
                hint="allow more with `--time-budget`",
            )

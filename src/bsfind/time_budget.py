"""How much time is left: for one answer of a worker, and for the whole search."""

from __future__ import annotations

import time

from bsfind.errors import TimeLimitError
from bsfind.units import format_duration

__all__ = ["TimeBudget"]


class TimeBudget:
    """A clock that runs from its making.

    Args:
        trial_timeout_s: longest time for one answer, seconds.
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

    def for_one_answer(self) -> float:
        """Return how many seconds the next answer may take.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        self.check()
        if self._total_s is None:
            return self._trial_timeout_s
        return min(self._trial_timeout_s, self._total_s - self.elapsed_s)

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

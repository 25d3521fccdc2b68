"""Does the answer hold? The recommended size runs on, in a process of its own, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsfind.errors import TimeLimitError
from bsfind.records import GlobalBatch, ReportWarning, Trial
from bsfind.search.accepted_sizes import AcceptedSizes
from bsfind.search.global_batch import split
from bsfind.search.recommend import step_down
from bsfind.search.trials import TrialRunner
from bsfind.settings import SearchLimits
from bsfind.worker.client import ModelDoesNotFit

_MAX_ATTEMPTS = 8

_ACCUMULATED = 2
"""Micro-batches that a confirmed step has where gradients are accumulated: the second one already
meets the gradients of the first, and so does every further one."""

_COMFORT = 0.94
"""Down to which part of a size one is sought at which the allocator settles."""

_THRASHING = 3
"""So many flushes of the cache in a step, and training would crawl: then more is given up."""

COMFORT_OF_PROCESSES = (0.98, 0.94, 0.88, 0.82, 0.76)
COMFORT_OF_REPLAYS = tuple(1 - percent / 100 for percent in range(1, 25))
"""Which parts of a size are tried where the allocator does not settle: a process each, or a replay."""

_HEAD_START = 3
"""A size that runs for a while is given up in larger steps than one that does not run at all: it is not
the guess that is slightly wrong, something grows."""


class Confirmation:
    """Finds the largest size that holds for many steps.

    A size that does not run gives way to a smaller one. One at which the allocator has to flush its
    cache again and again, which costs time, gives way to one that is slightly smaller if that settles.

    Args:
        precision: for the warnings.
        limits: of the search.
        sizes: which the model accepts.
        budget_bytes: what the process may use.
        is_everything: whether that is all there is: no headroom is kept.
        comfort: which parts of a size are tried where the allocator does not settle.
        runner: runs the trials.
        on_attempt: told before each of them.

    Attributes:
        trial: of the size that holds; None before there is one.
        global_batch: how `--global-batch` is reached with it.
        leaking: the trial that showed a leak: there is no size that lasts.
        has_failed: every size that was run failed, so that none can be recommended.
        has_failed_late: some of them ran for as many steps as a trial of the search has.
        warnings: what the reader of the answer must know.
    """

    def __init__(
        self,
        precision: str,
        limits: SearchLimits,
        sizes: AcceptedSizes,
        budget_bytes: int,
        runner: TrialRunner,
        on_attempt: Callable[[int], None],
        *,
        is_everything: bool,
        comfort: Sequence[float] = COMFORT_OF_PROCESSES,
    ) -> None:
        self._precision = precision
        self._limits = limits
        self._sizes = sizes
        self._budget = budget_bytes
        self._is_everything = is_everything
        self._comfort = comfort
        self._last_parts: GlobalBatch | None = None
        self._runner = runner
        self._on_attempt = on_attempt
        self.trial: Trial | None = None
        self.global_batch: GlobalBatch | None = None
        self.leaking: Trial | None = None
        self.has_failed = self.has_failed_late = False
        self.warnings: list[ReportWarning] = []

    def confirm(self, largest: int) -> Trial | None:
        """Run sizes from `largest` down until one holds; None if none does."""
        failed: list[Trial] = []
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            trial = self._attempt(largest)
            if trial is None or trial.leak is not None:
                break
            if trial.status == "ok":
                self._accept(trial)
                self._seek_comfort(trial)
                break
            if trial.is_refused:
                largest = trial.batch_size - 1  # not for want of memory: the next size may do
                continue
            failed.append(trial)
            largest = step_down(trial.batch_size, attempt + _HEAD_START * self._is_late(trial))
        self.has_failed = self.trial is None and bool(failed)
        self.has_failed_late = self.has_failed and any(map(self._is_late, failed))
        self._warn_failed(failed)
        return self.trial

    def _attempt(self, largest: int) -> Trial | None:
        """Run the largest useful size up to `largest`; None if there is none."""
        self._last_parts = parts = self._parts(largest)
        candidate = parts.micro_batch_size if parts else self._sizes.at_most(largest)
        if candidate < max(self._limits.min_batch_size, 1):
            return None
        self._on_attempt(candidate)
        trial = self.run(candidate, self._limits.confirm_steps, accumulates=_accumulates(parts))
        if trial.leak is not None:
            self.leaking, self.trial = trial, None
        return trial

    def _accept(self, trial: Trial) -> None:
        self.trial, self.global_batch = trial, self._last_parts

    def _seek_comfort(self, found: Trial) -> None:
        """Where the allocator does not settle at a size that runs, look for one at which it does."""
        best = found
        for part in self._comfort:
            if not best.steady_alloc_retries or (part < _COMFORT and not _thrashes(best)):
                break
            trial = self._attempt(int(found.batch_size * part))
            if trial is None or trial.leak is not None:
                return
            if trial.status == "ok" and (
                not trial.steady_alloc_retries or (_thrashes(best) and not _thrashes(trial))
            ):
                best = trial
                self._accept(trial)
        if best.steady_alloc_retries:
            self._warn_restless(best)

    def _is_late(self, trial: Trial) -> bool:
        """Tell whether a failure came later than the trials of the search could see it."""
        return trial.steps >= self._limits.steps

    def run(self, batch_size: int, steps: int, *, accumulates: bool = False) -> Trial:
        """Run a size within the budget; what does not run is an answer too."""
        try:
            trial = self._runner.run_within(
                batch_size,
                self._budget,
                steps=steps,
                grad_accum=_ACCUMULATED if accumulates else None,
            )
            self._sizes.record(trial)
            return trial
        except ModelDoesNotFit as answer:
            return Trial(batch_size=batch_size, status="oom", message=str(answer))
        except TimeLimitError as error:
            self._runner.check_time()
            return Trial(batch_size=batch_size, status="timeout", message=error.message)

    def _parts(self, largest: int) -> GlobalBatch | None:
        limits = self._limits
        if limits.global_batch is None:
            return None
        return split(
            limits.global_batch,
            largest,
            world_size=limits.world_size,
            sizes=self._sizes,
        )

    def accumulates_from(self, largest: int) -> bool:
        """Tell whether the global batch takes several micro-batches of at most this size."""
        return _accumulates(self._parts(largest))

    def _warn_failed(self, failed: list[Trial]) -> None:
        """Tell of a size that the search took for good; what a guess missed is nobody's concern."""
        told = next(
            (t for t in failed if self._is_everything or t.status != "oom" or self._is_late(t)),
            None,
        )
        if told is None:
            return
        instead = f"{self.trial.batch_size} is" if self.trial else "nothing is"
        what = {"oom": "ran out of memory", "timeout": "took too long"}.get(told.status, "failed")
        where = "in a fresh process"
        if self._sizes.has_run(told.batch_size):
            where = "ran in the search, but in a fresh process it"
        self.warnings.append(
            ReportWarning(
                code="confirmation_failed",
                message=f"{self._precision}: batch size {told.batch_size} {where} {what} after "
                f"{told.steps} steps; {instead} recommended",
            )
        )

    def _warn_restless(self, trial: Trial) -> None:
        self.warnings.append(
            ReportWarning(
                code="alloc_retries",
                message=f"{self._precision}: batch size {trial.batch_size} fits, but not comfortably: "
                f"PyTorch flushed its cache {trial.steady_alloc_retries} times in the last "
                f"{trial.steps - trial.steps // 2} of {trial.steps} steps to go on, which costs time",
                hint="try PYTORCH_ALLOC_CONF=expandable_segments:True, or more `--headroom`",
            )
        )


def _thrashes(trial: Trial) -> bool:
    settled_steps = trial.steps - trial.steps // 2
    return trial.steady_alloc_retries >= _THRASHING * settled_steps


def _accumulates(parts: GlobalBatch | None) -> bool:
    return parts is not None and parts.accumulation_steps > 1

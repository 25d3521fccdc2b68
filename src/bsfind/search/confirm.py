"""Confirms the recommended size: it runs for many steps, in a process of its own, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bsfind.errors import TimeLimitError
from bsfind.records import ReportWarning
from bsfind.results import GlobalBatch
from bsfind.search.accepted_sizes import AcceptedSizes
from bsfind.search.recommend import split_global_batch, step_down
from bsfind.search.trials import Trials
from bsfind.settings import SearchLimits
from bsfind.trial import Trial
from bsfind.worker.client import ModelDoesNotFit

_MAX_ATTEMPTS = 8

_ACCUMULATED = 2
"""Micro-batches of a confirmed step where gradients are accumulated: the second one already meets the
gradients of the first, and so does every further one."""

_SMALLEST_REDUCTION = 0.94
"""Down to this share of a size, one is sought at which the allocator reaches a steady state."""

_MANY_RETRIES_PER_STEP = 3
"""Cache flushes per step above which training becomes unusably slow: a larger reduction is worth it."""

_LATE_FAILURE_ATTEMPTS = 3
"""A size that fails after it ran for some steps is reduced as if so many attempts had failed before: memory
grows there, and the estimate is not just slightly wrong."""


class Confirmation:
    """Finds the largest size that holds for many steps.

    A size that does not run gives way to a smaller one. One at which the allocator keeps flushing its cache,
    which costs time, gives way to a slightly smaller one at which it reaches a steady state, if one is found.

    Args:
        name: what the search is called in the warnings.
        limits: limits of the search.
        sizes: the sizes that the model accepts.
        budget_bytes: what the process may use.
        runner: runs the trials.
        before_attempt: called with the size before each trial.
        is_everything: whether the budget is the whole capacity: no headroom is kept.
        reductions: shares of a size that are tried where the allocator keeps flushing its cache at it.
        exact: whether predictions trace each size (see `base.Device.run_trial`).
        searched: the name of the number that is searched.
        world_size: GPUs that share the global batch.

    Attributes:
        trial: the trial of the size that holds; None before there is one.
        global_batch: how `--global-batch` is reached with it.
        leaking: the trial that showed a leak: no size lasts.
        has_failed: every size that was run failed, so that none can be recommended.
        has_failed_late: some of them ran for as many steps as a trial of the search has.
        warnings: what the reader of the answer must know.
    """

    def __init__(
        self,
        name: str,
        limits: SearchLimits,
        sizes: AcceptedSizes,
        budget_bytes: int,
        runner: Trials,
        before_attempt: Callable[[int], None],
        *,
        is_everything: bool,
        reductions: Sequence[float],
        exact: bool = False,
        searched: str = "batch size",
        world_size: int = 1,
    ) -> None:
        self._name = name
        self._world_size = world_size
        self._searched = searched
        self._limits = limits
        self._sizes = sizes
        self._budget = budget_bytes
        self._runner = runner
        self._before_attempt = before_attempt
        self._is_everything = is_everything
        self._reductions = reductions
        self._exact = exact
        self._last_parts: GlobalBatch | None = None
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
                self._reduce_until_steady(trial)
                break
            if trial.is_refused:
                largest = trial.batch_size - 1  # not out of memory: the next size may run
                continue
            failed.append(trial)
            largest = step_down(
                trial.batch_size, attempt + _LATE_FAILURE_ATTEMPTS * self._is_late(trial)
            )
        self.has_failed = self.trial is None and bool(failed)
        self.has_failed_late = self.has_failed and any(map(self._is_late, failed))
        self._warn_failed(failed)
        return self.trial

    def _attempt(self, largest: int) -> Trial | None:
        """Run the largest useful size up to `largest`; None if there is none."""
        self._last_parts = parts = self._parts(largest)
        candidate = parts.micro_batch_size if parts else self._sizes.at_most(largest)
        if candidate < max(self._limits.least, 1):
            return None
        self._before_attempt(candidate)
        trial = self.run(candidate, self._limits.confirm_steps, accumulates=_accumulates(parts))
        if trial.leak is not None:
            self.leaking, self.trial = trial, None
        return trial

    def _accept(self, trial: Trial) -> None:
        self.trial, self.global_batch = trial, self._last_parts

    def _reduce_until_steady(self, found: Trial) -> None:
        """Look for a smaller size at which the allocator stops flushing its cache, if it does not here."""
        best = found
        for share in self._reductions:
            if not best.steady_alloc_retries or (
                share < _SMALLEST_REDUCTION and not _has_many_retries(best)
            ):
                break
            trial = self._attempt(int(found.batch_size * share))
            if trial is None or trial.leak is not None:
                return
            if trial.status == "ok" and (
                not trial.steady_alloc_retries
                or (_has_many_retries(best) and not _has_many_retries(trial))
            ):
                best = trial
                self._accept(trial)
        if best.steady_alloc_retries:
            self._warn_alloc_retries(best)

    def _is_late(self, trial: Trial) -> bool:
        """Tell whether a trial failed later than the trials of the search could see."""
        return trial.steps >= self._limits.steps

    def trace(self, found: Trial) -> Trial:
        """Trace the size that holds (see `base.Device.run_trial`): a prediction may follow from others."""
        self._before_attempt(found.batch_size)
        accumulates = _accumulates(self.global_batch)
        steps = self._limits.confirm_steps
        return self.run(found.batch_size, steps, accumulates=accumulates, exact=True)

    def run_beside(self, batch_size: int, steps: int) -> Trial:
        """Run another size as the one that holds was run, in the same process if it is free again."""
        accumulates = _accumulates(self.global_batch)
        return self.run(batch_size, steps, accumulates=accumulates, is_beside=True)

    def run(
        self,
        batch_size: int,
        steps: int,
        *,
        accumulates: bool = False,
        exact: bool = False,
        is_beside: bool = False,
    ) -> Trial:
        """Run a size within the budget; out of memory and out of time are answers too."""
        try:
            trial = self._runner.run_within(
                batch_size,
                self._budget,
                steps=steps,
                grad_accum=_ACCUMULATED if accumulates else None,
                exact=exact or self._exact,
                is_beside=is_beside,
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
        return split_global_batch(
            limits.global_batch,
            largest,
            world_size=self._world_size,
            sizes=self._sizes,
        )

    def accumulates_from(self, largest: int) -> bool:
        """Tell whether the global batch takes several micro-batches of at most this size."""
        return _accumulates(self._parts(largest))

    def _warn_failed(self, failed: list[Trial]) -> None:
        """Warn if a size that the search found to fit failed. A missed estimate is not reported."""
        reported = next(
            (t for t in failed if self._is_everything or t.status != "oom" or self._is_late(t)),
            None,
        )
        if reported is None:
            return
        instead = f"{self.trial.batch_size} is" if self.trial else "nothing is"
        what = {"oom": "ran out of memory", "timeout": "took too long"}.get(
            reported.status, "failed"
        )
        where = "in a fresh process"
        if self._sizes.has_run(reported.batch_size):
            where = "ran in the search, but in a fresh process it"
        self.warnings.append(
            ReportWarning(
                code="confirmation_failed",
                message=f"{self._name}: {self._searched} {reported.batch_size} {where} {what} after "
                f"{reported.steps} steps; {instead} recommended",
            )
        )

    def _warn_alloc_retries(self, trial: Trial) -> None:
        self.warnings.append(
            ReportWarning(
                code="alloc_retries",
                message=f"{self._name}: {self._searched} {trial.batch_size} fits, but the allocator "
                f"keeps flushing its cache ({trial.steady_alloc_retries} retries in the last "
                f"{trial.steps - trial.steps // 2} of {trial.steps} steps), which slows training",
                hint="try PYTORCH_ALLOC_CONF=expandable_segments:True, or more `--headroom`",
            )
        )


def _has_many_retries(trial: Trial) -> bool:
    steady_steps = trial.steps - trial.steps // 2
    return trial.steady_alloc_retries >= _MANY_RETRIES_PER_STEP * steady_steps


def _accumulates(parts: GlobalBatch | None) -> bool:
    return parts is not None and parts.accumulation_steps > 1

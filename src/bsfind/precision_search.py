"""The search in one precision: asks `Search` what to try, has it tried, confirms the answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bsfind.errors import BsfindError, TargetError, TimeLimitError, WorkerError
from bsfind.recommend import (
    best_that_leaves,
    next_throughput_probe,
    round_down,
    saturation,
    step_down,
)
from bsfind.records import (
    DeviceInfo,
    PrecisionResult,
    PredictedPeaks,
    ReportWarning,
    ResultStatus,
    Trial,
)
from bsfind.search import LineThroughPeaks, Search
from bsfind.settings import Settings
from bsfind.simulation.allocator_settings import AllocatorSettings
from bsfind.simulation.forecast import largest_that_fits
from bsfind.trial_runner import TrialRunner
from bsfind.units import format_bytes
from bsfind.worker.client import ModelDoesNotFit

__all__ = ["PrecisionSearch", "Progress"]

_MAX_CONFIRMATIONS = 6


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known while the search goes on.

    Attributes:
        precision: being searched.
        doing: `loading`, `trying`, `confirming` or `timing`.
        batch_size: being tried; None while loading.
        best: largest that ran.
        failed: smallest above it that did not.
        trials: how many ran in this precision.
        out_of_memory: how many of them ran out of memory.
    """

    precision: str
    doing: str
    batch_size: int | None = None
    best: int | None = None
    failed: int | None = None
    trials: int = 0
    out_of_memory: int = 0


class PrecisionSearch:
    """Finds the largest and the recommended batch size in one precision, on a real device.

    Args:
        precision: which (never `amp`).
        settings: what to run.
        device: the device as the first worker found it.
        runner: runs the trials.
        on_progress: told before each step.
        on_trial: told after each trial; `result` is up to date then.
        predicted: asked, once the model is loaded, for what a prediction says of this precision.

    Attributes:
        error: what the user's code or the worker did to end the search; None if nothing.
        warnings: what the reader of the result must know.
    """

    def __init__(
        self,
        precision: str,
        settings: Settings,
        device: DeviceInfo,
        runner: TrialRunner,
        on_progress: Callable[[Progress], None],
        on_trial: Callable[[Trial], None],
        predicted: Callable[[str], PrecisionResult | None] = lambda _: None,
    ) -> None:
        self._precision = precision
        self._limits = settings.limits
        self._batch_size = settings.batch_size
        self._device = device
        self._runner = runner
        self._on_progress = on_progress
        self._on_trial = on_trial
        self._capacity = device.capacity_bytes
        self._budget = settings.limits.headroom.leaves(self._capacity)
        self._ask_prediction = predicted
        self._predicted: PrecisionResult | None = None
        self._search = self._make_search()
        self._allocator = AllocatorSettings.from_environment(
            os.environ, torch_version=device.torch_version or ""
        )
        self._within_budget: Trial | None = None
        self._timing: list[Trial] = []
        self._status: ResultStatus = "unfinished"
        self._message: str | None = None
        self.error: BsfindError | None = None
        self.warnings: list[ReportWarning] = []

    def run(self) -> PrecisionResult:
        """Search to the end, and return the result.

        Failures of the user's code are part of the result (and `error`).

        Raises:
            TimeLimitError: the time budget of the whole search is spent.
            BsfindError: a device that went away, or a bug in bsfind.
        """
        try:
            self._report_progress("loading")
            self._runner.load()
            self._predicted = self._ask_prediction(self._precision)
            self._search = self._make_search()
            self._find_maximum()
            if self._search.best is not None and self._batch_size is None:
                self._find_recommendation()
            self._finish()
        except ModelDoesNotFit as answer:
            self._status = "nothing_fits"
            self._message = f"the model alone does not fit: {answer}"
        except (TargetError, WorkerError) as error:
            self._status, self._message, self.error = "error", error.message, error
        return self.result

    def _make_search(self) -> Search:
        return Search(
            smallest=self._batch_size or self._limits.min_batch_size,
            largest=self._batch_size or self._limits.max_batch_size,
            tolerance=self._tolerance(),
            guess=self._guess_maximum,
            expected=self._predicted.max_batch_size if self._predicted else None,
        )

    def _tolerance(self) -> float:
        return self._limits.tolerance

    def _find_maximum(self) -> None:
        while (batch_size := self._search.next()) is not None:
            self._report_progress("trying", batch_size)
            trial = self._try(batch_size)
            self._search.record(trial)
            self._on_trial(trial)

    def _try(self, batch_size: int) -> Trial:
        """Run a trial; one that takes too long is an answer too.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        try:
            return self._runner.run(batch_size)
        except TimeLimitError as error:
            self._runner.check_time()
            self.warnings.append(
                ReportWarning(
                    code="trial_timeout",
                    message=f"{self._precision}: batch size {batch_size} was given up: {error.message}",
                    hint=error.hint,
                )
            )
            return Trial(batch_size=batch_size, status="timeout", message=error.message)

    def _guess_maximum(self, trials: Sequence[Trial]) -> int | None:
        guess = self._guess(trials, self._capacity)
        largest_that_ran = max((t.batch_size for t in trials if t.status == "ok"), default=0)
        return None if guess is None else max(guess, largest_that_ran)

    def _guess(self, trials: Sequence[Trial], limit_bytes: int) -> int | None:
        """Return the largest batch size that fits into `limit_bytes`, as far as can be told."""
        recordings = list(self._runner.recordings.values())
        replayed = largest_that_fits(recordings, limit_bytes, self._allocator)
        return replayed if replayed is not None else LineThroughPeaks(limit_bytes)(trials)

    def _find_recommendation(self) -> None:
        best = self._search.best
        assert best is not None
        guess = best.batch_size
        if self._budget < self._capacity:
            guess = self._largest_within_budget(best.batch_size)
        recommended = self._confirm(guess)
        if recommended is not None and self._limits.objective == "fastest":
            self._find_fastest(recommended)

    def _largest_within_budget(self, largest: int) -> int:
        """Return what may be the largest batch size up to `largest` that leaves the headroom."""
        guess = self._guess(self._search.trials, self._budget)
        predicted = self._predicted
        if predicted is not None and predicted.recommended_batch_size is not None:
            expected, failed = predicted.max_batch_size or largest, self._search.smallest_failed
            is_right = largest <= expected and (failed is None or expected < failed)
            # If it is not, the recommended size is as far off as the maximum.
            missed = 0 if is_right else min(0, largest - expected)
            guess = predicted.recommended_batch_size + missed
        return largest if guess is None else min(largest, max(1, guess))

    def _confirm(self, batch_size: int) -> Trial | None:
        """Run the recommended size limited to the budget, in a process of its own if it is real.

        A size that does not run there gives way to a smaller one.
        """
        multiple, smallest = self._limits.multiple_of, self._limits.min_batch_size
        candidate = round_down(batch_size, multiple)
        for attempt in range(1, _MAX_CONFIRMATIONS + 1):
            if candidate < max(smallest, 1):
                return None
            self._report_progress("confirming", candidate)
            trial = self._run_within_budget(candidate)
            if trial.status == "ok":
                self._within_budget = trial
                self._on_trial(trial)
                return trial
            if self._budget == self._capacity or trial.status == "timeout":
                self._warn_unconfirmed(trial)
            candidate = step_down(candidate, multiple, attempt)
        return None

    def _run_within_budget(self, batch_size: int) -> Trial:
        try:
            return self._runner.run_within(batch_size, self._budget)
        except ModelDoesNotFit as answer:
            return Trial(batch_size=batch_size, status="oom", message=str(answer))
        except TimeLimitError as error:
            self._runner.check_time()
            return Trial(batch_size=batch_size, status="timeout", message=error.message)

    def _warn_unconfirmed(self, trial: Trial) -> None:
        self.warnings.append(
            ReportWarning(
                code="confirmation_failed",
                message=f"{self._precision}: batch size {trial.batch_size} ran among other trials "
                f"but not in a fresh process ({trial.status}); a smaller one is recommended",
            )
        )

    def _find_fastest(self, confirmed: Trial) -> None:
        largest = confirmed.batch_size
        smallest, multiple = self._limits.min_batch_size, self._limits.multiple_of
        while True:
            trials = [*self._search.trials, confirmed, *self._timing]
            probe = next_throughput_probe(trials, largest, smallest=smallest, multiple_of=multiple)
            if probe is None:
                break
            self._report_progress("timing", probe)
            trial = self._try(probe)
            self._timing.append(trial)
            self._on_trial(trial)
        fits = [t for t in trials if t.batch_size <= largest and t.batch_size % multiple == 0]
        fastest = saturation([t for t in fits if t.batch_size >= smallest])
        if fastest is not None and fastest.batch_size < largest:
            self._confirm(fastest.batch_size)  # if it does not run, the first one stands

    def _finish(self) -> None:
        best = self._search.best
        timed_out = any(trial.status == "timeout" for trial in self._search.trials)
        if best is not None:
            self._status = "ok"
        elif timed_out:
            self._message = "no batch size ran in the time that was given"
        else:
            self._status = "nothing_fits"
            last = self._search.trials[-1]
            self._message = f"batch size {last.batch_size} does not run: {last.message}"
        limited = [t for t in self._search.trials if t.status == "error" and t.batch_size > 1]
        if limited:
            self.warnings.append(
                ReportWarning(
                    code="kernel_limit",
                    message=f"{self._precision}: batch size {limited[-1].batch_size} failed for "
                    f"another reason than memory: {limited[-1].message}",
                )
            )

    def _report_progress(self, doing: str, batch_size: int | None = None) -> None:
        trials = self._search.trials
        best = self._search.best
        self._on_progress(
            Progress(
                precision=self._precision,
                doing=doing,
                batch_size=batch_size,
                best=best.batch_size if best else None,
                failed=self._search.smallest_failed,
                trials=len(trials),
                out_of_memory=sum(trial.status == "oom" for trial in trials),
            )
        )

    @property
    def result(self) -> PrecisionResult:
        """What is known so far."""
        search, recommended = self._search, self._within_budget
        shown = recommended
        # On a real device, what was tried in a fresh process and did not run there is no answer.
        is_refuted = self._status == "ok" and self._device.kind == "cuda" and not self._batch_size
        if shown is None and self._status in ("ok", "unfinished") and not is_refuted:
            multiple = 1 if self._batch_size else self._limits.multiple_of
            budget = self._capacity if self._batch_size else self._budget
            shown = best_that_leaves(search.trials, budget, multiple)
        trials = (*search.trials, *self._timing)
        if recommended is not None and all(
            trial.batch_size != recommended.batch_size or trial.status != "ok" for trial in trials
        ):
            trials = (*trials, recommended)
        largest = max(
            (trial for trial in trials if trial.status == "ok"),
            key=lambda trial: trial.batch_size,
            default=None,
        )
        confirmed = recommended if self._device.kind == "cuda" else None  # else nothing ran
        total = self._device.total_bytes
        return PrecisionResult(
            precision=self._precision,
            status=self._status,
            max_batch_size=largest.batch_size if largest else None,
            recommended_batch_size=shown.batch_size if shown else None,
            is_maximum_proven=search.best is not None and search.is_proven,
            peak_allocated_bytes=shown.peak_allocated_bytes if shown else None,
            peak_reserved_bytes=shown.peak_reserved_bytes if shown else None,
            peak_fraction=(
                shown.peak_reserved_bytes / total if shown and shown.peak_reserved_bytes else None
            ),
            samples_per_s=shown.samples_per_s if shown else None,
            step_time_s=shown.step_time_s if shown else None,
            verified=confirmed is not None,
            smallest_failed_batch_size=search.smallest_failed,
            confirmation=confirmed,
            trials=trials,
            predicted=_predicted_peaks(self._predicted),
            message=self._message or self._why_nothing_is_recommended(shown),
        )

    def _why_nothing_is_recommended(self, shown: Trial | None) -> str | None:
        if shown is not None or self._status != "ok":
            return None
        best = self._search.best
        assert best is not None
        multiple = self._limits.multiple_of
        needed = f"{max(multiple, self._limits.min_batch_size)}"
        return (
            f"batch size {best.batch_size} runs, but none from {needed} on runs within the budget "
            f"of {format_bytes(self._budget)} (the headroom stays free)"
        )


def _predicted_peaks(result: PrecisionResult | None) -> PredictedPeaks | None:
    if result is None or result.max_batch_size is None:
        return None
    return PredictedPeaks(
        max_batch_size=result.max_batch_size,
        recommended_batch_size=result.recommended_batch_size,
        peak_allocated_bytes=result.peak_allocated_bytes,
        peak_reserved_bytes=result.peak_reserved_bytes,
    )

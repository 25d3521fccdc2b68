"""The search in one precision: asks `Search` what to try, has it tried, confirms the answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from bsfind.errors import BsfindError, NoDeviceError, TargetError, TimeLimitError, WorkerError
from bsfind.records import (
    DeviceInfo,
    ExpandableSegments,
    PrecisionResult,
    PredictedPeaks,
    ReportWarning,
    ResultStatus,
    Trial,
)
from bsfind.search.accepted_sizes import AcceptedSizes, Multiples
from bsfind.search.bracket import LineThroughPeaks, Search
from bsfind.search.confirm import COMFORT_OF_PROCESSES, Confirmation
from bsfind.search.events import Progress
from bsfind.search.forecast import largest_that_fits
from bsfind.search.fragmentation import try_expandable_segments
from bsfind.search.recommend import best_that_leaves, is_fragmented, saturation
from bsfind.search.throughput import Timing
from bsfind.search.trials import TrialRunner
from bsfind.search.variants import variables_of
from bsfind.settings import Settings
from bsfind.simulation.allocator.settings import AllocatorSettings
from bsfind.units import format_bytes
from bsfind.worker.client import ModelDoesNotFit

_LEAK_HINT = (
    "look for a list, attribute or metric that keeps tensors (losses with their graph, say) from step "
    "to step; keep `loss.detach()` or `loss.item()` instead"
)


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
        precision: that is searched.
        error: what the user's code or the worker did to end the search; None if nothing.
    """

    _comfort: Sequence[float] = COMFORT_OF_PROCESSES

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
        self.precision = precision
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
        self._sizes = AcceptedSizes(1 if self._batch_size else self._limits.multiple_of)
        self._search = self._make_search()
        self._allocator = AllocatorSettings.from_environment(
            {**os.environ, **variables_of(settings.remedy, os.environ)},
            torch_version=device.torch_version or "",
        )
        self._confirmation = Confirmation(
            precision,
            settings.limits,
            self._sizes,
            self._budget,
            runner,
            lambda batch_size: self._report_progress("confirming", batch_size),
            is_everything=self._budget == self._capacity,
            comfort=self._comfort,
        )
        self._remedy = settings.remedy
        self._timing = Timing(settings.limits, self._sizes, self._time)
        self._expandable_segments: ExpandableSegments | None = None
        self._status: ResultStatus = "unfinished"
        self._message: str | None = None
        self.error: BsfindError | None = None
        self._is_out_of_time = False
        self._warnings: list[ReportWarning] = []

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
            self._predicted = self._ask_prediction(self.precision)
            if self._predicted is not None:
                self._sizes.assume(self._predicted.refused_sizes)
            self._search = self._make_search()
            self._find_maximum()
            self._look_for_refusals()
            if self._search.best is not None and self._batch_size is None:
                self._find_recommendation()
            self._look_for_leaks()
            self._finish()
        except ModelDoesNotFit as answer:
            self._status = "nothing_fits"
            self._message = f"the model alone does not fit: {answer}"
        except (TargetError, WorkerError) as error:
            self._status, self._message, self.error = "error", error.message, error
        except TimeLimitError:
            self._is_out_of_time = True
            raise
        except BsfindError as error:
            self._status, self._message, self.error = "error", error.message, error
            if isinstance(error, NoDeviceError) and not self.is_asked_for:
                return (
                    self.result
                )  # a setting that this torch or driver cannot open the device with
            raise
        return self.result

    def _make_search(self) -> Search:
        return Search(
            smallest=self._batch_size or self._limits.min_batch_size,
            largest=self._batch_size or self._limits.max_batch_size,
            tolerance=self._tolerance(),
            guess=self._guess_maximum,
            expected=self._predicted.max_batch_size if self._predicted else None,
            sizes=self._sizes,
        )

    def _tolerance(self) -> float:
        return self._limits.tolerance

    def _find_maximum(self) -> None:
        while (batch_size := self._search.next()) is not None:
            self._report_progress("trying", batch_size)
            trial = self._try(batch_size)
            self._search.record(trial)
            self._on_trial(trial)
            if trial.leak is not None:
                return

    def _try(self, batch_size: int, steps: int | None = None) -> Trial:
        """Run a trial; one that takes too long is an answer too.

        Raises:
            TimeLimitError: the time for everything is over.
        """
        try:
            return self._runner.run(batch_size, steps)
        except TimeLimitError as error:
            self._runner.check_time()
            self._warnings.append(
                ReportWarning(
                    code="trial_timeout",
                    message=f"{self.precision}: batch size {batch_size} was given up: {error.message}",
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
        if any(trial.leak for trial in self._search.trials):
            return
        guess = best.batch_size
        if self._budget < self._capacity:
            guess = self._largest_within_budget(best.batch_size)
        guess = self._time_up_to(guess)
        confirmed = self._confirmation.confirm(guess)
        if confirmed is not None:
            self._on_trial(confirmed)

    def _largest_within_budget(self, largest: int) -> int:
        """Return what may be the largest batch size up to `largest` that leaves the headroom."""
        budget = self._budget
        if self._confirmation.accumulates_from(largest) and self._runner.model is not None:
            budget -= self._runner.model.model_bytes  # the gradients of the micro-batches before
        guess = self._guess(self._search.trials, budget)
        predicted = self._predicted
        if predicted is not None and predicted.recommended_batch_size is not None:
            expected, failed = predicted.max_batch_size or largest, self._search.smallest_failed
            is_right = largest <= expected and (failed is None or expected < failed)
            # If it is not, the recommended size is as far off as the maximum.
            missed = 0 if is_right else min(0, largest - expected)
            guess = predicted.recommended_batch_size + missed
        return largest if guess is None else min(largest, max(1, guess))

    def _time_up_to(self, largest: int) -> int:
        """Find out where throughput saturates; returns the size to confirm."""
        if self._limits.objective == "fastest":
            return self._timing.fastest_up_to(largest, self._search.trials)
        self._timing.down_from(largest, self._search.trials)
        return largest

    def _time(self, batch_size: int, steps: int) -> Trial:
        self._report_progress("timing", batch_size)
        trial = self._try(batch_size, steps)
        self._on_trial(trial)
        return trial

    def look_at_fragmentation(self) -> None:
        """Try expandable segments if much of the memory is reserved and lies idle.

        Raises:
            TimeLimitError: the time budget of the whole search is spent.
        """
        confirmed, limits = self._confirmation.trial, self._limits
        if confirmed is None or self._allocator.expandable_segments:
            return
        if limits.objective != "largest" or limits.global_batch is not None:
            return  # memory is not what decides
        if not is_fragmented(confirmed.peak_allocated_bytes, confirmed.peak_reserved_bytes):
            return
        self._report_progress("defragmenting", confirmed.batch_size)
        self._expandable_segments = try_expandable_segments(
            self._runner,
            list(self._runner.recordings.values()),
            confirmed,
            limits,
            self._sizes,
            self._budget,
            self._device.torch_version or "",
        )

    def _look_for_refusals(self) -> None:
        """Raise what the model's code said first if it refused sizes and none ran."""
        refused = [t.batch_size for t in self._search.trials if t.error_kind == "refused"]
        if self._search.best is not None or not refused:
            return
        first = self._runner.refusals[refused[0]]
        others = [
            ("fails too", "fail too", refused[1:]),
            (
                "runs out of memory",
                "run out of memory",
                [t.batch_size for t in self._search.trials if t.status == "oom"],
            ),
        ]
        tried = "; ".join(
            f"{', '.join(map(str, sizes))} {one if len(sizes) == 1 else several}"
            for one, several, sizes in others
            if sizes
        )
        if not tried:
            raise first
        detail = f"{first.detail}\n\nOther batch sizes were tried: {tried}."
        raise type(first)(first.message, detail=detail, hint=first.hint)

    def _look_for_leaks(self) -> None:
        """Raise TargetError if memory grew from step to step: no batch size would last."""
        leaking = self._leaking
        if leaking is not None:
            raise TargetError(
                f"{leaking.message}, at batch size {leaking.batch_size}",
                detail="No batch size would last.",
                hint=_LEAK_HINT,
            )

    @property
    def _leaking(self) -> Trial | None:
        ran = (*self._search.trials, *self._timing.trials)
        seen = (trial for trial in ran if trial.leak is not None)
        return self._confirmation.leaking or next(seen, None)

    def _finish(self) -> None:
        best = self._search.best
        timed_out = any(trial.status == "timeout" for trial in self._search.trials)
        if best is not None:
            self._status = "ok"
        elif timed_out:
            self._message = "no batch size ran in the time that was given"
        else:
            self._status = "nothing_fits"
            self._message = self._why_nothing_runs()
        limited = [t for t in self._search.trials if t.error_kind == "kernel_limit"]
        if limited:
            self._warnings.append(
                ReportWarning(
                    code="kernel_limit",
                    message=f"{self.precision}: batch size {limited[-1].batch_size} failed for "
                    f"another reason than memory: {limited[-1].message}",
                )
            )

    def _why_nothing_runs(self) -> str:
        """Return why no batch size ran: the smallest that failed, and that batch norm refuses one sample."""
        refusal = next((t for t in self._search.trials if t.error_kind == "batch_norm"), None)
        failed = [t for t in self._search.trials if t is not refusal]
        if not failed:
            assert refusal is not None
            return f"{refusal.message}; 2 is the smallest to try"
        smallest = min(failed, key=lambda trial: trial.batch_size)
        text = f"batch size {smallest.batch_size} does not run: {smallest.message}"
        return text if refusal is None else f"{text}; {refusal.message}"

    def _report_progress(self, doing: str, batch_size: int | None = None) -> None:
        trials = self._search.trials
        best = self._search.best
        self._on_progress(
            Progress(
                precision=self.precision,
                doing=doing,
                batch_size=batch_size,
                best=best.batch_size if best else None,
                failed=self._search.smallest_failed,
                trials=len(trials),
                out_of_memory=sum(trial.status == "oom" for trial in trials),
            )
        )

    @property
    def is_asked_for(self) -> bool:
        """Whether the model is as asked for: not changed by a remedy."""
        return self._remedy is None

    @property
    def warnings(self) -> list[ReportWarning]:
        """What the reader of the result must know."""
        return [*self._warnings, *self._confirmation.warnings]

    @property
    def result(self) -> PrecisionResult:
        """What is known so far."""
        search, recommended, leaking = self._search, self._confirmation.trial, self._leaking
        predicted = self._predicted
        # A size from a search that an error broke off is no recommendation; one that ran in time is.
        may_recommend = self._status == "ok" or self._is_out_of_time
        shown = recommended if may_recommend else None
        if (
            shown is None
            and may_recommend
            and leaking is None
            and not self._confirmation.has_failed
        ):
            budget = self._capacity if self._batch_size else self._budget
            multiple = Multiples(1 if self._batch_size else self._limits.multiple_of)
            shown = best_that_leaves(search.trials, budget, multiple)
        trials, timings = tuple(search.trials), tuple(self._timing.trials)
        if recommended is not None and all(
            trial.batch_size != recommended.batch_size or trial.status != "ok" for trial in trials
        ):
            trials = (*trials, recommended)
        if self._confirmation.leaking is not None:
            trials = (*trials, self._confirmation.leaking)
        enough = saturation([t for t in (*trials, *timings) if t.status == "ok"])
        largest = max(
            (trial for trial in trials if trial.status == "ok"),
            key=lambda trial: trial.batch_size,
            default=None,
        )
        confirmed = recommended if self._device.kind == "cuda" else None  # else nothing ran
        total = self._device.total_bytes
        return PrecisionResult(
            precision=self.precision,
            remedy=self._remedy,
            status=self._status,
            max_batch_size=largest.batch_size if largest else None,
            recommended_batch_size=shown.batch_size if shown else None,
            is_maximum_proven=search.best is not None and search.is_proven,
            peak_allocated_bytes=shown.peak_allocated_bytes if shown else None,
            peak_reserved_bytes=shown.peak_reserved_bytes if shown else None,
            fragmentation_bytes=_difference(shown),
            peak_fraction=(
                shown.peak_reserved_bytes / total if shown and shown.peak_reserved_bytes else None
            ),
            samples_per_s=shown.samples_per_s if shown else None,
            step_time_s=shown.step_time_s if shown else None,
            verified=confirmed is not None,
            smallest_failed_batch_size=search.smallest_failed,
            confirmation=confirmed,
            saturation_batch_size=enough.batch_size if enough else None,
            expandable_segments=self._expandable_segments,
            global_batch=self._confirmation.global_batch,
            leak=leaking.leak if leaking else None,
            refused_sizes=self._sizes.found() or (predicted.refused_sizes if predicted else None),
            trials=trials,
            timings=timings,
            predicted=_predicted_peaks(predicted),
            message=self._message or self._why_nothing_is_recommended(shown),
            weights_dtype=self._runner.model.weights_dtype if self._runner.model else None,
        )

    def _why_nothing_is_recommended(self, shown: Trial | None) -> str | None:
        if shown is not None or self._status != "ok":
            return None
        best = self._search.best
        assert best is not None
        needed = self._sizes.above(self._limits.min_batch_size - 1)
        if self._confirmation.has_failed_late:
            return (
                f"batch size {best.batch_size} runs, but none that was tried runs on for "
                f"{self._limits.confirm_steps} steps within the budget of {format_bytes(self._budget)}"
            )
        return (
            f"batch size {best.batch_size} runs, but none from {needed} on runs within the budget "
            f"of {format_bytes(self._budget)} (the headroom stays free)"
        )


def _difference(trial: Trial | None) -> int | None:
    if trial is None or trial.peak_reserved_bytes is None or trial.peak_allocated_bytes is None:
        return None
    return trial.peak_reserved_bytes - trial.peak_allocated_bytes


def _predicted_peaks(result: PrecisionResult | None) -> PredictedPeaks | None:
    if result is None or result.max_batch_size is None:
        return None
    return PredictedPeaks(
        max_batch_size=result.max_batch_size,
        recommended_batch_size=result.recommended_batch_size,
        peak_allocated_bytes=result.peak_allocated_bytes,
        peak_reserved_bytes=result.peak_reserved_bytes,
    )

"""The conductor: opens the device, searches precision after precision, keeps the report current."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bsfind.errors import (
    BsfindError,
    NoDeviceError,
    NoGpuError,
    TargetError,
    TimeLimitError,
    WorkerError,
)
from bsfind.failures.gpu_faults import gone
from bsfind.failures.gpu_lock import GpuLock, hold, lock_folder
from bsfind.failures.memory_watch import MemoryWatch
from bsfind.records import (
    DeviceInfo,
    ModelInfo,
    PrecisionResult,
    Report,
    ReportStatus,
    ReportWarning,
    Trial,
)
from bsfind.search.events import Progress
from bsfind.search.precision import PrecisionSearch
from bsfind.search.predictor import Predictor
from bsfind.search.recommend import recommend
from bsfind.search.report_builder import assumption_of_output, report_of, stand_in_warning
from bsfind.search.simulated import SimulatedSearch
from bsfind.search.trials import SimulatedTrialRunner, TrialRunner
from bsfind.search.variants import remedied, variables_of, why_unsupported
from bsfind.settings import DeviceChoice, Settings
from bsfind.time_budget import TimeBudget
from bsfind.units import format_bytes
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool


class _Kinds(NamedTuple):
    """Who conducts the trials of one precision."""

    runner: type[TrialRunner]
    search: type[PrecisionSearch]


_OF_A_PRECISION = (TargetError, WorkerError)
"""Errors that end the search in one precision, and leave the others alone."""

_REAL = _Kinds(TrialRunner, PrecisionSearch)
_SIMULATED = _Kinds(SimulatedTrialRunner, SimulatedSearch)


class Finder:
    """Runs what the settings ask for.

    Args:
        settings: what to run.
        command: the command line, for the report.
        on_no_gpu: asked for a device where `auto` finds no GPU at all; None: there is no other, and
            the search fails.
        on_progress: told before each step.
        on_trial: told after each trial; `report` is up to date then.
        on_output: gets every line that the user's code prints.
        on_wait: told, once, that another bsfind has the GPU.
        use_lock: wait for the GPU until no other bsfind measures on it.

    Attributes:
        errors: what ended the search before it had an answer: a failure that broke all of it off, a limit;
            the failures of single precisions only where no precision gave an answer.
        stopped_by: what ended it from outside, for the report: `interrupted`, say.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] = (),
        on_no_gpu: Callable[[NoGpuError], DeviceChoice | None] = lambda _: None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_trial: Callable[[str, Trial], None] = lambda _precision, _trial: None,
        on_output: Callable[[str], None] = lambda _: None,
        on_wait: Callable[[str], None] = lambda _: None,
        use_lock: bool = True,
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._on_no_gpu = on_no_gpu
        self._on_progress = on_progress
        self._on_trial = on_trial
        self._on_output = on_output
        self._on_wait = on_wait
        self._use_lock = use_lock
        self._watch = MemoryWatch()
        self._clock = TimeBudget(settings.limits.trial_timeout_s, settings.limits.time_budget_s)
        self._device: DeviceInfo | None = None
        self._model: ModelInfo | None = None
        self._results: list[PrecisionResult] = []
        self._current: PrecisionSearch | None = None
        self._runners: list[TrialRunner] = []
        self._searches: dict[str, PrecisionSearch] = {}
        self._warnings: list[ReportWarning] = []
        self._is_finished = False
        self.errors: list[BsfindError] = []
        self.stopped_by: str | None = None

    def run(self) -> Report:
        """Search to the end.

        Whatever ends it early (Ctrl-C included), `report` tells what is known and no process is
        left behind. Errors are in `errors`.
        """
        searching = self._settings.batch_size is None
        searches = len(self._settings.precisions) + len(self._settings.compare)
        expected = searches * (2 if searching else 1)  # one confirms
        if self._settings.device.is_simulated:
            expected = 1
        with (
            contextlib.ExitStack() as held,  # the GPU's lock: given up when the pool is gone
            WorkerPool(self._on_output, self._warn, expected, watch=self._watch) as pool,
        ):
            try:
                self._run(pool, held)
                self._is_finished = True
            except TimeLimitError as error:
                self.errors.append(self._why_out_of_time(error))
            except BsfindError as error:
                self.errors.append(gone(error) if self._device else error)
        self._settle_failures()
        return self.report

    def _why_out_of_time(self, error: TimeLimitError) -> TimeLimitError:
        """Return the error of the limit that was too short: what was waited for had what was left of all."""
        try:
            self._clock.check()
        except TimeLimitError as spent:
            return spent
        return error

    def _settle_failures(self) -> None:
        """Failures of single precisions are warnings where another one gave an answer, else errors."""
        failed = {
            precision: search.error
            for precision, search in self._searches.items()
            if isinstance(search.error, _OF_A_PRECISION)
        }
        if not self._is_answered(self._results):
            broken_off = [error for error in self.errors if not isinstance(error, TimeLimitError)]
            self.errors[len(broken_off) : len(broken_off)] = failed.values()
            return
        for precision, error in failed.items():
            self._warn(
                ReportWarning(
                    code="precision_failed",
                    message=f"{precision} failed: {error.message}",
                    hint=f"`--precision {precision}` alone shows the traceback"
                    if error.detail
                    else error.hint or None,
                )
            )

    def _run(self, pool: WorkerPool, held: contextlib.ExitStack) -> None:
        worker = pool.take()
        with Predictor(self._settings) as predictor:
            self._device = self._open(worker, held)
            self._warn_about_neighbours(self._device)
            kinds = _REAL
            if self._device.kind == "simulated":
                kinds = _SIMULATED
                pool.expect_no_more()
            pool.prepare()
            precisions = precisions_of(self._settings, self._device)
            predictor.begin(self._device, precisions)
            opened = self._search_all(precisions, kinds, pool, worker, predictor.result)
        self._look_at_fragmentation()
        if self._settings.compare and self._model is not None:
            self._compare(kinds, pool, opened)

    def _search_all(
        self,
        precisions: Sequence[str],
        kinds: _Kinds,
        pool: WorkerPool,
        worker: Worker,
        predicted: Callable[[str], PrecisionResult | None],
    ) -> Worker | None:
        """Search every precision; returns a worker that is left over."""
        assert self._device is not None
        opened: Worker | None = worker
        for precision in precisions:
            why_not = unsupported(precision, self._device)
            if why_not is not None:
                self._results.append(
                    PrecisionResult(precision=precision, status="unsupported", message=why_not)
                )
                continue
            runner = kinds.runner(self._settings, precision, pool, self._clock, opened)
            search = kinds.search(
                precision,
                self._settings,
                self._device,
                runner,
                self._on_progress,
                functools.partial(self._on_trial, precision),
                predicted,
            )
            self._search(search, runner)
            opened = runner.left_over
            if search.error is not None and self._model is None:
                break  # the model could not be built: it will not be in another precision either
        return opened

    def _look_at_fragmentation(self) -> None:
        """See what lies idle in the recommended precision."""
        best = recommend(self._results, self._settings.limits.objective)
        if best is None:
            return
        search = self._searches[best.precision]
        search.look_at_fragmentation()
        self._results = [
            search.result if result.precision == best.precision else result
            for result in self._results
        ]

    def _compare(self, kinds: _Kinds, pool: WorkerPool, opened: Worker | None) -> None:
        """Search once more with each remedy, in the precision that is recommended."""
        assert self._device is not None
        best = recommend(self._results, self._settings.limits.objective)
        tried = [result.precision for result in self._results if result.status != "unsupported"]
        if not tried:
            return
        precision = best.precision if best else tried[-1]
        for remedy in self._settings.compare:
            settings = remedied(self._settings, remedy, precision)
            why_not = why_unsupported(remedy, simulated=kinds is _SIMULATED)
            if why_not is not None:
                self._results.append(
                    PrecisionResult(
                        precision=precision, remedy=remedy, status="unsupported", message=why_not
                    )
                )
                continue
            variables = variables_of(remedy, os.environ)
            runner = kinds.runner(
                settings, precision, pool, self._clock, None if variables else opened, variables
            )
            search = kinds.search(
                precision,
                settings,
                self._device,
                runner,
                self._on_progress,
                functools.partial(self._on_trial, precision),
            )
            self._search(search, runner)
            if not variables:
                opened = runner.left_over

    def _open(self, worker: Worker, held: contextlib.ExitStack) -> DeviceInfo:
        """Open the device that was asked for, or what stands in for a GPU that is not there."""
        choice = self._settings.device
        try:
            if not choice.is_simulated:
                uuid = worker.identify(choice, self._clock.for_start())
                lock = held.enter_context(GpuLock(uuid, lock_folder()))
                warning = hold(lock, self._clock, self._on_wait, alone=self._use_lock)
                if warning is not None:
                    self._warn(warning)
            return worker.open(choice, self._clock.for_start())
        except NoGpuError as error:
            other = self._on_no_gpu(error) if self._settings.device.device == "auto" else None
            if other is None:
                raise
        self._settings = dataclasses.replace(self._settings, device=other)
        return worker.open(other, self._clock.for_start())

    def _search(self, search: PrecisionSearch, runner: TrialRunner) -> None:
        self._current = search
        if search.is_asked_for:
            self._runners.append(runner)
        try:
            search.run()
        finally:
            if search.is_asked_for:
                self._searches[search.precision] = search
                self._model = _known_best(runner.model, self._model)
            for warning in search.warnings:
                self._warn(warning)
            self._results.append(search.result)
            self._current = None

    def _warn(self, warning: ReportWarning) -> None:
        if warning not in self._warnings:  # two precisions may say the same
            self._warnings.append(warning)

    def _warn_about_neighbours(self, device: DeviceInfo) -> None:
        if not device.other_processes:
            return
        named = ", ".join(
            f"{process.name or 'a process'} (PID {process.pid}"
            + (f", {format_bytes(process.used_bytes)})" if process.used_bytes else ")")
            for process in device.other_processes
        )
        self._warnings.append(
            ReportWarning(
                code="other_processes",
                message=f"other processes use this GPU: {named}",
                hint="the answer holds for the memory that they leave free now",
            )
        )

    @property
    def report(self) -> Report:
        """What is known so far."""
        settings, device = self._settings, self._device
        results = list(self._results)
        warnings = list(self._warnings)
        if self._current is not None:
            results.append(self._current.result)
            warnings.extend(self._current.warnings)
        if (taken := self._watch.warning) is not None:
            warnings.append(taken)
        output = next((r.output for r in self._runners if r.output is not None), None)
        told = self._trial_of_the_answer(results)
        at = (told.batch_size, told.peak_allocated_bytes) if told else (None, None)
        if (stand_in := stand_in_warning(output, *at)) is not None:
            warnings.append(stand_in)
        # Each worker chooses for itself, all by the same rules.
        made = dict.fromkeys(made for runner in self._runners for made in runner.assumptions)
        if (of_output := assumption_of_output(output, *at)) is not None:
            made[of_output] = None
        return report_of(
            settings,
            self._command,
            device,
            self._model,
            results,
            warnings,
            list(made),
            status=self._status(results),
            message=self.stopped_by or (self.errors[0].message if self.errors else None),
            may_recommend=self.stopped_by is None
            and all(isinstance(error, TimeLimitError) for error in self.errors),
            duration_s=self._clock.elapsed_s,
        )

    def _is_answered(self, results: Sequence[PrecisionResult]) -> bool:
        """Tell whether a precision gave an answer, if only a size that ran before time was over."""
        return any(
            result.remedy is None
            and (
                result.status in ("ok", "nothing_fits")
                or (result.status == "unfinished" and result.max_batch_size is not None)
            )
            for result in results
        )

    def _trial_of_the_answer(self, results: Sequence[PrecisionResult]) -> Trial | None:
        """Return the trial of the recommended batch size, or the last that ran; None if none did."""
        trials = [trial for r in results for trial in r.trials if trial.status == "ok"]
        best = recommend(results, self._settings.limits.objective)
        if best is not None:
            trials = [
                t
                for r in results
                if (r.precision, r.remedy) == (best.precision, None)
                for t in r.trials
                if t.batch_size == best.batch_size
            ]
        return trials[-1] if trials else None

    def _status(self, results: Sequence[PrecisionResult]) -> ReportStatus:
        fatal = [error for error in self.errors if not isinstance(error, TimeLimitError)]
        if fatal and not self._is_answered(results):
            lost_gpu = any(isinstance(error, NoDeviceError) for error in fatal)
            has_run = any(result.max_batch_size is not None for result in results)
            return "partial" if lost_gpu and has_run else "failed"
        timed_out = any(t.status == "timeout" for result in results for t in result.trials)
        return "complete" if self._is_finished and not timed_out else "partial"


def _known_best(model: ModelInfo | None, before: ModelInfo | None) -> ModelInfo | None:
    """Return the model as a precision found it, with the kind that an earlier one found if it must."""
    if model is None or before is None:
        return model or before
    return dataclasses.replace(model, kind=model.kind or before.kind)


def precisions_of(settings: Settings, device: DeviceInfo) -> list[str]:
    """Return the precisions to search on a device: `amp` resolved, none twice."""
    amp = "amp-bf16" if device.supports_bf16 else "amp-fp16"
    return list(dict.fromkeys(amp if p == "amp" else p for p in settings.precisions))


def unsupported(precision: str, device: DeviceInfo) -> str | None:
    """Return why a device cannot run a precision; None if it can."""
    if precision == "tf32" and not device.supports_tf32:
        return f"{device.name} has no TF32 (it came with compute capability 8.0)"
    if precision in ("bf16", "amp-bf16") and not device.supports_bf16:
        return f"{device.name} has no bfloat16 in hardware (it came with compute capability 8.0)"
    return None

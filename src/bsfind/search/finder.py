"""Opens the device, searches row after row of the report, keeps the report current."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bsfind.errors import (
    BelowMinimumError,
    BsfindError,
    TargetError,
    TimeLimitError,
    WorkerError,
)
from bsfind.failures.gpu_faults import gone
from bsfind.failures.memory_watch import MemoryWatch
from bsfind.launch.placeholders import names_of
from bsfind.records import DeviceInfo, ModelInfo, ReportWarning
from bsfind.results import GpusNeeded, PrecisionResult, Recommendation, Report
from bsfind.search.all_ranks import launch_of
from bsfind.search.events import Events
from bsfind.search.gpus_needed import MOST_GPUS, find_gpus_needed, look_for_more_gpus, sharded
from bsfind.search.launched import LaunchedTrials
from bsfind.search.opening import Opened, open_device
from bsfind.search.precision import PrecisionSearch, Predict
from bsfind.search.predict_first import Predictor
from bsfind.search.recommend import recommend
from bsfind.search.report_builder import SearchState, is_answered, report_of
from bsfind.search.time_budget import TimeBudget
from bsfind.search.trials import TrialRunner, Trials
from bsfind.search.variants import (
    at_length,
    lengths_of,
    precisions_of,
    remedied,
    unsupported,
    variables_of,
    why_unsupported,
)
from bsfind.settings import Launch, Settings
from bsfind.units import format_bytes
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool

_OF_ONE_PRECISION = (TargetError, WorkerError)
"""Errors that end the search in one precision, and leave the others alone."""


class Finder:
    """Runs what the settings ask for.

    Args:
        settings: what to run.
        command: the command line, for the report.
        events: receives what happens; `report` is up to date after each trial.
        use_lock: wait for the GPU until no other bsfind measures on it.
        make_pool: makes the pools of the workers, with the arguments of `WorkerPool`.
        clock: how long it may take, where other searches share the time; None: as the settings say.

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
        events: Events | None = None,
        use_lock: bool = True,
        make_pool: Callable[..., WorkerPool] = WorkerPool,
        clock: TimeBudget | None = None,
    ) -> None:
        self._settings = settings
        self._command = tuple(command)
        self._events = events or Events()
        self._use_lock = use_lock
        self._make_pool = make_pool
        self._lengths = lengths_of(settings)
        self._watch = MemoryWatch()
        limits = settings.limits
        self._clock = clock or TimeBudget(limits.trial_timeout_s, limits.time_budget_s)
        self._begun_s = self._clock.elapsed_s
        self._opened: Opened | None = None
        self._model: ModelInfo | None = None
        self._results: list[PrecisionResult] = []
        self._current: PrecisionSearch | None = None
        # By precision and length; those of `--compare` aside.
        self._searches: dict[tuple[str, int | None], PrecisionSearch] = {}
        self._warnings: list[ReportWarning] = []
        self._is_finished = False
        self._logs: Path | None = None
        self._nccl_bytes: int | None = None
        self._convolution_workspaces: str | None = None
        self._needed: GpusNeeded | None = None
        self.errors: list[BsfindError] = []
        self.stopped_by: str | None = None

    def run(self) -> Report:
        """Search to the end.

        Whatever ends it early (Ctrl-C included), `report` has what is known and no process is left behind.
        Errors are in `errors`.
        """
        expected = 1
        if not self._settings.device.is_simulated and not self._settings.is_launched:
            num_rows = len(self._settings.precisions) * len(self._lengths)
            num_searches = num_rows + len(self._settings.compare)
            is_check = self._settings.batch_size is not None
            expected = num_searches * (1 if is_check else 2)  # one searches, one confirms
        with (
            contextlib.ExitStack() as held,  # the GPU's lock: given up when the pool is gone
            self._make_pool(
                expected=expected,
                on_output=self._events.output,
                on_warning=self._warn,
                watch=self._watch,
                predicts=self._settings.device.is_simulated,
            ) as pool,
        ):
            try:
                self._run(pool, held)
                self._is_finished = True
            except TimeLimitError as error:
                self.errors.append(self._why_out_of_time(error))
            except BsfindError as error:
                self.errors.append(gone(error) if self._opened else error)
        self._settle_failures()
        return self.report

    def _why_out_of_time(self, error: TimeLimitError) -> TimeLimitError:
        """Return the error of the limit that was reached: that of the whole search, or that of a trial."""
        try:
            self._clock.check()
        except TimeLimitError as spent:
            return spent
        return error

    def _settle_failures(self) -> None:
        """Turn failures of single precisions into warnings where another one gave an answer, else errors.

        Of several lengths, the longest needs an answer.
        """
        failed = {
            search: search.error
            for search in self._searches.values()
            if isinstance(search.error, _OF_ONE_PRECISION)
        }
        if not is_answered([r for r in self._results if r.seq_len == self._lengths[0]]):
            broken_off = [error for error in self.errors if not isinstance(error, TimeLimitError)]
            self.errors[len(broken_off) : len(broken_off)] = failed.values()
            return
        for search, error in failed.items():
            alone = f"--precision {search.precision}"
            if search.seq_len is not None:
                alone += f" --seq-len {search.seq_len}"
            self._warn(
                ReportWarning(
                    code="precision_failed",
                    message=f"{search.name} failed: {error.message}",
                    hint=f"`{alone}` alone shows the traceback"
                    if error.detail and self._settings.launch is None
                    else error.hint or None,
                )
            )

    def _run(self, pool: WorkerPool, held: contextlib.ExitStack) -> None:
        worker = pool.take()
        if self._settings.is_launched:
            self._launch(pool, worker, held)
            return
        with Predictor(self._settings, self._make_pool) as predictor:
            opened = self._open(pool, worker, held)
            if not opened.policy.is_measured:
                pool.expect_no_more()
            if opened.settings.parallel.is_auto:
                opened, worker = self._on_enough_gpus(opened, worker)
                self._opened = opened
            pool.prepare()
            precisions = precisions_of(self._settings, opened.device)
            rows = [(precision, seq_len) for seq_len in self._lengths for precision in precisions]
            predictor.begin(opened.settings, opened.device, rows)
            left_over = self._search_all(opened, rows, worker, predictor.result)
        self._look_at_fragmentation()
        if self._settings.compare and self._model is not None:
            self._compare(opened, left_over)
        if self._is_too_large:
            found = look_for_more_gpus(opened, left_over, self._clock, self._events)
            if isinstance(found, ReportWarning):
                self._warn(found)
            else:
                self._needed = found

    def _open(self, pool: WorkerPool, worker: Worker, held: contextlib.ExitStack) -> Opened:
        opened = self._opened = open_device(
            *(self._settings, pool, worker, held, self._clock, self._events, self._warn),
            use_lock=self._use_lock,
        )
        self._warn_about_other_processes(opened.device)
        return opened

    def _launch(self, pool: WorkerPool, worker: Worker, held: contextlib.ExitStack) -> None:
        """Search every row of what is launched, once a worker has told which device there is."""
        opened = self._open(pool, worker, held)
        pool.close()  # the worker's context takes memory
        self._logs = Path(tempfile.mkdtemp(prefix="bsfind-launch-"))
        for name, settings, launch, found in self._launched(opened, self._logs):
            runner = LaunchedTrials(
                *(launch, name, settings.limits),
                *(opened.device, settings.device, self._clock),
                logs=self._logs,
                found=found,
                on_line=self._events.output,
                on_warning=self._warn,
            )
            search = self._search(opened, settings, name, runner)
            if runner.nccl_bytes is not None:
                self._nccl_bytes = max(self._nccl_bytes or 0, runner.nccl_bytes)
            workspaces = runner.convolution_workspaces
            self._convolution_workspaces = workspaces or self._convolution_workspaces
            if found is not None and search.error is not None and self._model is None:
                break
        self._look_at_fragmentation()

    def _launched(
        self, opened: Opened, logs: Path
    ) -> Iterator[tuple[str, Settings, Launch, Path | None]]:
        """Yield the rows of what is launched: name, settings, command, and where rank 0 tells of it."""
        launch = opened.settings.launch
        if launch is not None:
            for name in names_of(launch):
                yield name, opened.settings, launch, None
            return
        for seq_len in self._lengths:
            for precision in precisions_of(opened.settings, opened.device):
                why_not = unsupported(precision, opened.device)
                if why_not is not None:
                    self._add_unsupported(precision, seq_len, None, why_not)
                    continue
                settings = at_length(opened.settings, seq_len)
                yield precision, settings, *launch_of(settings, precision, logs)

    @property
    def _is_too_large(self) -> bool:
        """Whether the model trains on no single GPU of this kind, at any batch size."""
        settings, results = self._settings, self._results
        asked = settings.batch_size is None and settings.workload.mode == "train"
        return (
            asked
            and settings.workload.axis is None
            and not settings.parallel.is_used
            and bool(results)
            and all(result.status == "nothing_fits" for result in results)
            and all(t.status == "oom" for result in results for t in result.trials)
        )

    def _on_enough_gpus(self, opened: Opened, worker: Worker) -> tuple[Opened, Worker]:
        """Return the device and a worker for the smallest number of GPUs on which the model trains.

        Raises:
            BelowMinimumError: not even many are enough.
        """
        needed = self._needed = find_gpus_needed(
            *(opened, None if opened.policy.is_measured else worker, self._clock, self._events),
            is_asked_for=True,
        )
        if needed is None:
            raise BelowMinimumError(
                f"batch size {max(1, opened.settings.limits.least)} does not train with FSDP2 on "
                f"{MOST_GPUS:,} of these GPUs"
            )
        settings = sharded(opened.settings, needed.world_size)
        worker = opened.pool.take() if opened.policy.is_measured else worker
        device = worker.open(settings.device, self._clock.for_start())
        return dataclasses.replace(opened, settings=settings, device=device), worker

    def _search_all(
        self,
        opened: Opened,
        rows: Sequence[tuple[str, int | None]],
        worker: Worker,
        predict: Predict,
    ) -> Worker | None:
        """Search every precision at every length; return a worker that is left over."""
        left_over: Worker | None = worker
        for precision, seq_len in rows:
            why_not = unsupported(precision, opened.device)
            if why_not is not None:
                self._add_unsupported(precision, seq_len, None, why_not)
                continue
            settings = at_length(opened.settings, seq_len)
            runner = self._runner(opened, settings, precision, left_over)
            search = self._search(opened, settings, precision, runner, predict)
            left_over = search.runner.left_over
            if search.error is not None and self._model is None:
                break  # the model could not be built: it will not be in another precision either
        return left_over

    def _look_at_fragmentation(self) -> None:
        """See what expandable segments gain in the recommended precision."""
        best = self._best
        if best is None:
            return
        key = (best.precision, best.seq_len)
        search = self._searches[key]
        search.look_at_fragmentation()
        self._results = [
            search.result if (result.precision, result.seq_len) == key else result
            for result in self._results
        ]

    @property
    def _best(self) -> Recommendation | None:
        settings = self._settings
        objective, axis = settings.limits.objective, settings.workload.axis
        return recommend(self._results, objective, self._lengths[0], axis)

    def _compare(self, opened: Opened, left_over: Worker | None) -> None:
        """Search once more with each change of `--compare`, in the row that is recommended."""
        best = self._best
        tried = [result for result in self._results if result.status != "unsupported"]
        if not tried:
            return
        precision = best.precision if best else tried[-1].precision
        longest = at_length(opened.settings, self._lengths[0])
        plain = self._searches[precision, longest.seq_len].result
        for remedy in self._settings.compare:
            why_not = why_unsupported(remedy, simulated=not opened.policy.is_measured)
            if why_not is not None:
                self._add_unsupported(precision, longest.seq_len, remedy, why_not)
                continue
            settings = remedied(longest, remedy, precision)
            variables = variables_of(remedy, os.environ)
            worker = None if variables else left_over
            runner = self._runner(opened, settings, precision, worker, variables)
            self._search(opened, settings, precision, runner, plain=plain)
            if not variables:
                left_over = runner.left_over

    def _add_unsupported(
        self, precision: str, seq_len: int | None, remedy: str | None, message: str
    ) -> None:
        self._results.append(
            PrecisionResult(
                precision=precision,
                remedy=remedy,
                seq_len=seq_len,
                status="unsupported",
                message=message,
            )
        )

    def _runner(
        self,
        opened: Opened,
        settings: Settings,
        precision: str,
        worker: Worker | None,
        variables: Mapping[str, str] | None = None,
    ) -> TrialRunner:
        return TrialRunner(
            settings,
            precision,
            opened.pool,
            self._clock,
            keeps_worker=not opened.policy.is_measured,
            opened=worker,
            variables=variables,
        )

    def _search(
        self,
        opened: Opened,
        settings: Settings,
        precision: str,
        runner: Trials,
        predict: Predict | None = None,
        plain: PrecisionResult | None = None,
    ) -> PrecisionSearch:
        """Search in one precision, and keep what is found, whatever ends it."""
        search = self._current = PrecisionSearch(
            *(precision, settings, opened.device, runner, opened.policy, self._events), plain=plain
        )
        if search.remedy is None:
            self._searches[precision, settings.seq_len] = search
        try:
            search.run(predict)
        finally:
            if search.remedy is None:
                self._model = _known_best(runner.model, self._model)
            for warning in search.all_warnings:
                self._warn(warning)
            self._results.append(search.result)
            self._current = None
        return search

    def _warn(self, warning: ReportWarning) -> None:
        if warning not in self._warnings:  # two precisions may say the same
            self._warnings.append(warning)

    def _warn_about_other_processes(self, device: DeviceInfo) -> None:
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
    def _device(self) -> DeviceInfo | None:
        """The device that was opened, with what NCCL has been seen to take of it."""
        device = self._opened.device if self._opened else None
        if device is None or self._nccl_bytes is None:
            return device
        return dataclasses.replace(device, nccl_bytes=self._nccl_bytes, nccl_source="measured")

    @property
    def report(self) -> Report:
        """What is known so far."""
        current = [self._current] if self._current is not None else []
        # The answer is that of the longest of several lengths, and so is what was assumed.
        longest, asked = self._lengths[0], self._settings.seq_lens
        runners = [search.runner for search in self._searches.values() if search.seq_len == longest]
        results = (*self._results, *(search.result for search in current))
        taken = self._watch.warning
        opened = self._opened
        return report_of(
            SearchState(
                settings=opened.settings if opened else self._settings,
                command=self._command,
                device=self._device,
                needed=self._needed,
                model=self._model,
                results=tuple(
                    sorted(results, key=lambda r: asked.index(r.seq_len) if r.seq_len else 0)
                ),
                warnings=(
                    *self._warnings,
                    *(warning for search in current for warning in search.all_warnings),
                    *([taken] if taken is not None else ()),
                ),
                # Each worker chooses for itself, all by the same rules.
                assumptions=tuple(made for runner in runners for made in runner.assumptions),
                inputs=next((r.inputs for r in runners if r.inputs), ()),
                convolution_workspaces=self._convolution_workspaces,
                output=next((r.output for r in runners if r.output is not None), None),
                errors=tuple(self.errors),
                stopped_by=self.stopped_by,
                logs=self._logs,
                is_finished=self._is_finished,
                duration_s=self._clock.elapsed_s - self._begun_s,
            )
        )


def _known_best(model: ModelInfo | None, before: ModelInfo | None) -> ModelInfo | None:
    """Return the model as a precision found it, with what an earlier trace found if it has none."""
    if model is None or before is None:
        return model or before
    return dataclasses.replace(
        model,
        kind=model.kind or before.kind,
        convolution_workspaces=model.convolution_workspaces or before.convolution_workspaces,
    )

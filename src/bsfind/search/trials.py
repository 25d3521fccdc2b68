"""Runs the trials of one precision: what a search needs of them, and how workers do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bsfind.errors import BsfindError, WorkerError
from bsfind.inputs import InputSpec
from bsfind.records import Assumption, ModelInfo, OutputMemory
from bsfind.search.time_budget import TimeBudget
from bsfind.settings import Settings, Workload
from bsfind.simulation.allocator.recording import Recording
from bsfind.trial import Trial
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool


class Trials(Protocol):
    """Runs trials for one row of the report.

    Attributes: see `TrialRunner`.
    """

    model: ModelInfo | None
    assumptions: tuple[Assumption, ...]
    inputs: tuple[InputSpec, ...]
    output: OutputMemory | None
    recordings: dict[int, Recording]
    refusals: dict[int, BsfindError]
    busy_s: float
    slowest_s: float
    slowest_size: int
    sizes_follow: bool

    @property
    def left_over(self) -> Worker | None:
        """A worker that another row can have."""
        ...

    def load(self) -> object:
        """Get ready for the first trial."""
        ...

    def run(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        """Run a trial that may use the whole device (see `TrialRunner.run`)."""
        ...

    def run_within(
        self,
        batch_size: int,
        limit_bytes: int,
        *,
        steps: int,
        grad_accum: int | None = None,
        variables: Mapping[str, str] | None = None,
        exact: bool = False,
        is_beside: bool = False,
    ) -> Trial:
        """Run a trial that may use `limit_bytes` of the device (see `TrialRunner.run_within`)."""
        ...

    def check_time(self) -> None:
        """Raise TimeLimitError if the time for the whole search is over."""
        ...


@dataclass(frozen=True)
class _Loaded:
    """A worker that is ready for trials: what it has loaded, and its memory limit."""

    worker: Worker
    workload: Workload
    limit_bytes: int | None


class TrialRunner:
    """Runs trials of one precision in worker processes; replaces a worker that is unfit.

    Args:
        settings: what to run.
        precision: the precision (never `amp`).
        pool: where workers come from.
        clock: how long they may take.
        keeps_worker: whether one worker serves trials with any memory limit: nothing runs there that
            leaves memory behind.
        opened: a worker that has opened the device and, unless it is kept, has not loaded a model yet.
        variables: environment variables of the workers that differ from this process's.

    Attributes:
        model: the model as the latest worker loaded it, with the kind that its trials found; None
            before the first.
        assumptions: what the latest worker that ran a trial has chosen for its steps.
        inputs: the inputs that follow from the model; none where they were described.
        output: what the model returned to a loss of bsfind's.
        recordings: what the trials that ran asked of the allocator, by batch size.
        busy_s: processor time of the trials so far, seconds.
        slowest_s: that of the slowest trial but the first, which sets up what depends on values; seconds.
        slowest_size: its batch size.
        sizes_follow: whether trials of other sizes follow from those that ran, and take no time.
        refusals: what the model's code raised at sizes that it refused, in the order of the trials.

    All methods raise what `Worker` raises.
    """

    def __init__(
        self,
        settings: Settings,
        precision: str,
        pool: WorkerPool,
        clock: TimeBudget,
        *,
        keeps_worker: bool,
        opened: Worker | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._workload = settings.workload
        self._device = settings.device
        self._steps = settings.limits.steps
        self._precision = precision
        self._pool = pool
        self._clock = clock
        self._keeps_worker = keeps_worker
        self._opened = opened
        self._variables = variables
        self._loaded: _Loaded | None = None
        self._has_confirmed = False
        self._has_run = False  # a trial in the model that is loaded
        self.model: ModelInfo | None = None
        self.assumptions: tuple[Assumption, ...] = ()
        self.inputs: tuple[InputSpec, ...] = ()
        self.output: OutputMemory | None = None
        self.recordings: dict[int, Recording] = {}
        self.refusals: dict[int, BsfindError] = {}
        self.busy_s = self.slowest_s = 0.0
        self.slowest_size = 1
        self.sizes_follow = False

    def load(self) -> ModelInfo:
        """Load the model in a worker that has the whole device."""
        return self._load(self._workload, limit_bytes=None)

    def _load(self, workload: Workload, limit_bytes: int | None) -> ModelInfo:
        self._loaded, self._has_run = None, False
        worker = self._worker()
        before = self.model
        model = worker.load(workload, self._precision, self._clock.for_start())
        if before is not None:
            model = dataclasses.replace(
                model,
                kind=before.kind,
                convolution_workspaces=before.convolution_workspaces,
            )
        self.model = model
        if limit_bytes is not None:
            worker.limit_memory(limit_bytes, self._clock.for_start())
        self._loaded = _Loaded(worker, workload, limit_bytes)
        return self.model

    def _worker(self) -> Worker:
        """Return a worker that has opened the device and, unless it is kept, holds nothing of it."""
        if self._keeps_worker:
            if self._opened is None or not self._opened.is_alive:
                self._opened = self._open(self._variables)
            return self._opened
        worker, self._opened = self._opened, None
        return worker or self._open(self._variables)

    def _open(self, variables: Mapping[str, str] | None) -> Worker:
        worker = self._pool.take(variables)
        try:
            worker.open(self._device, self._clock.for_start())
        except WorkerError:  # no code of the user's has run there: a new one may do
            worker = self._pool.take(variables)
            worker.open(self._device, self._clock.for_start())
        self._pool.prepare()
        return worker

    @property
    def left_over(self) -> Worker | None:
        """A worker that another precision can have: the one that is kept."""
        return self._opened if self._keeps_worker and not self._variables else None

    def run(self, batch_size: int, steps: int | None = None, *, exact: bool = False) -> Trial:
        """Run a trial that may use the whole device, in a worker that may have run others before.

        Args:
            batch_size: samples in a micro-batch.
            steps: optimizer steps; None: the number in the settings.
            exact: whether a prediction traces this very size (see `base.Device.run_trial`).
        """
        if self._loaded is None or self._loaded.limit_bytes is not None:
            self.load()
        return self._run(batch_size, steps or self._steps, exact=exact)

    def run_within(
        self,
        batch_size: int,
        limit_bytes: int,
        *,
        steps: int,
        grad_accum: int | None = None,
        variables: Mapping[str, str] | None = None,
        exact: bool = False,
        is_beside: bool = False,
    ) -> Trial:
        """Run a trial that may use `limit_bytes` of the device: in a fresh worker, unless one is kept.

        Args:
            batch_size: samples in a micro-batch.
            limit_bytes: memory limit of the worker.
            steps: optimizer steps.
            grad_accum: micro-batches for each of them; None: the number in the settings.
            variables: environment variables of the worker that differ from this process's.
            exact: whether a prediction traces this very size (see `base.Device.run_trial`).
            is_beside: whether the worker of the last such trial will do, if that has left nothing behind.
        """
        workload = self._workload
        if grad_accum is not None:
            workload = dataclasses.replace(workload, grad_accum=grad_accum)
        if self._keeps_worker:
            self._limit(workload, limit_bytes)
            return self._run(batch_size, steps, exact=exact)
        if is_beside and self._is_loaded(workload, limit_bytes):
            return self._run(batch_size, steps)
        if variables is not None:
            self._opened = self._open(variables)
        elif self._has_confirmed:
            self._pool.expect_one_more()
        self._has_confirmed = True
        self._load(workload, limit_bytes)
        return self._run(batch_size, steps)

    def _is_loaded(self, workload: Workload, limit_bytes: int) -> bool:
        loaded = self._loaded
        return loaded is not None and (loaded.workload, loaded.limit_bytes) == (
            workload,
            limit_bytes,
        )

    def _limit(self, workload: Workload, limit_bytes: int) -> None:
        """Have the worker that is kept ready for a workload within a limit."""
        loaded = self._loaded
        if loaded is None or loaded.workload != workload:
            self._load(workload, limit_bytes)
        elif loaded.limit_bytes != limit_bytes:
            loaded.worker.limit_memory(limit_bytes, self._clock.for_start())
            self._loaded = _Loaded(loaded.worker, workload, limit_bytes)

    def _run(self, batch_size: int, steps: int, *, exact: bool = False) -> Trial:
        """Run a trial in the worker that is loaded, and once more with a fresh model if it is refused.

        State that earlier trials left in the model may be the reason: the position in a queue, a buffer of
        the last batch's size. A training run begins without it.
        """
        loaded, has_run = self._loaded, self._has_run
        trial = self._ask(batch_size, steps, exact=exact)
        if loaded is not None and has_run and trial.error_kind == "refused":
            self._load(loaded.workload, loaded.limit_bytes)
            trial = self._ask(batch_size, steps, exact=exact)
        self._has_run = self._has_run or trial.status == "ok"
        return trial

    def _ask(self, batch_size: int, steps: int, *, exact: bool) -> Trial:
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        answer = loaded.worker.run_trial(
            batch_size,
            steps,
            self._clock.for_trial(steps / self._steps),
            record=loaded.limit_bytes is None,
            exact=exact,
        )
        if self.busy_s and answer.busy_s > self.slowest_s:
            self.slowest_s, self.slowest_size = answer.busy_s, batch_size
        self.busy_s += answer.busy_s
        self.sizes_follow = answer.sizes_follow
        self.assumptions = loaded.worker.assumptions or self.assumptions
        self.inputs = loaded.worker.inputs
        self.output = loaded.worker.output or self.output
        if answer.recording is not None:
            self.recordings[batch_size] = answer.recording
        if answer.refusal is not None:
            self.refusals[batch_size] = answer.refusal
        if self.model is not None and answer.kind is not None:
            self.model = dataclasses.replace(
                self.model,
                kind=answer.kind,
                convolution_workspaces=answer.convolution_workspaces,
            )
        if answer.is_clean:
            self._loaded = loaded
        return answer.trial

    def check_time(self) -> None:
        """Raise TimeLimitError if the time for the whole search is over."""
        self._clock.check()

"""Runs the trials of one precision in worker processes; replaces a worker that is unfit."""

from __future__ import annotations

from dataclasses import dataclass

from bsfind.records import ModelInfo, Trial
from bsfind.settings import Settings
from bsfind.simulation.recording import Recording
from bsfind.time_budget import TimeBudget
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool

__all__ = ["SimulatedTrialRunner", "TrialRunner"]


@dataclass(frozen=True)
class _Loaded:
    """A worker that is ready for trials, and the memory limit that it was given."""

    worker: Worker
    limit_bytes: int | None


class TrialRunner:
    """Runs trials of one precision on a real device.

    Args:
        settings: what to run.
        precision: in which precision (never `amp`).
        pool: where workers come from.
        clock: how long they may take.
        opened: a worker that has opened the device already and has not loaded a model yet.

    Attributes:
        model: the model as the latest worker loaded it; None before the first.
        recordings: what the trials that ran asked of the allocator, by batch size.

    All methods raise what `Worker` raises.
    """

    def __init__(
        self,
        settings: Settings,
        precision: str,
        pool: WorkerPool,
        clock: TimeBudget,
        opened: Worker | None = None,
    ) -> None:
        self._settings = settings
        self._precision = precision
        self._pool = pool
        self._clock = clock
        self._opened = opened
        self._loaded: _Loaded | None = None
        self.model: ModelInfo | None = None
        self.recordings: dict[int, Recording] = {}

    def load(self) -> ModelInfo:
        """Load the model in a worker that has the whole device."""
        return self._load(limit_bytes=None)

    def _load(self, limit_bytes: int | None) -> ModelInfo:
        self._loaded = None
        worker = self._worker()
        self.model = worker.load(self._settings.workload, self._precision, self._clock.for_start())
        if limit_bytes is not None:
            worker.limit_memory(limit_bytes, self._clock.for_start())
        self._loaded = _Loaded(worker, limit_bytes)
        return self.model

    def _worker(self) -> Worker:
        """Return a worker that has opened the device and holds nothing of it."""
        worker, self._opened = self._opened, None
        return worker or self._open()

    def _open(self) -> Worker:
        worker = self._pool.take()
        worker.open(self._settings.device, self._clock.for_start())
        return worker

    @property
    def left_over(self) -> Worker | None:
        """A worker that another precision can have: none, each leaves something on the device."""
        return None

    def run(self, batch_size: int) -> Trial:
        """Run a trial with the whole device, in a worker that may have run others before."""
        if self._loaded is None or self._loaded.limit_bytes is not None:
            self.load()
        return self._run(batch_size)

    def run_within(self, batch_size: int, limit_bytes: int) -> Trial:
        """Run a trial in a process of its own, which may use `limit_bytes` of the device."""
        self._load(limit_bytes)
        trial = self._run(batch_size)
        self._loaded = None
        return trial

    def _run(self, batch_size: int) -> Trial:
        assert self._loaded is not None
        loaded, self._loaded = self._loaded, None
        answer = loaded.worker.run_trial(
            batch_size, self._settings.limits.steps, self._clock.for_trial()
        )
        if answer.recording is not None and loaded.limit_bytes is None:
            self.recordings[batch_size] = answer.recording
        if answer.is_clean:
            self._loaded = loaded
        return answer.trial

    def check_time(self) -> None:
        """Raise TimeLimitError if the time for the whole search is over."""
        self._clock.check()


class SimulatedTrialRunner(TrialRunner):
    """Runs trials of one precision on a simulated device: one process serves all of them."""

    def _worker(self) -> Worker:
        if self._opened is None or not self._opened.is_alive:
            self._opened = self._open()
        return self._opened

    @property
    def left_over(self) -> Worker | None:
        """A worker that another precision can have: the one that is in use."""
        return self._opened

    def run_within(self, batch_size: int, limit_bytes: int) -> Trial:
        """Run a trial that may use `limit_bytes` of the device."""
        loaded = self._loaded
        if loaded is None:
            self._load(limit_bytes)
        elif loaded.limit_bytes != limit_bytes:
            loaded.worker.limit_memory(limit_bytes, self._clock.for_start())
            self._loaded = _Loaded(loaded.worker, limit_bytes)
        return self._run(batch_size)

"""Predicts what the search on a real GPU will find, in a process beside it.

A right prediction saves the search its first trials. It is made while the first worker loads the model. If it
fails, the search runs without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Sequence

from bsfind.errors import BsfindError, UsageError
from bsfind.records import DeviceInfo, ReportWarning
from bsfind.results import PrecisionResult
from bsfind.search.events import Events
from bsfind.search.policy import Simulated
from bsfind.search.precision import PrecisionSearch
from bsfind.search.time_budget import TimeBudget
from bsfind.search.trials import TrialRunner
from bsfind.search.variants import at_length
from bsfind.settings import DeviceChoice, Settings
from bsfind.simulation.gpus.catalogue import find_gpu
from bsfind.worker.client import Worker
from bsfind.worker.pool import WorkerPool

_TIMEOUT_S = 30.0
"""How long a search waits for a prediction once its own model is loaded: it can find out itself by then."""

_TIMEOUT_SHARE = 0.2
"""The most of a time budget that is spent on waiting."""


class Predictor:
    """Searches on a simulated GPU that has as much memory as the real one has free.

    Its process starts at once, and imports torch while the real GPU is opened. Use as a context manager:
    at its end, the process is gone.

    Args:
        settings: what the real search runs.
        make_pool: makes the pool of its worker.
    """

    def __init__(self, settings: Settings, make_pool: Callable[..., WorkerPool]) -> None:
        self._settings = settings
        self._results: dict[tuple[str, int | None], PrecisionResult | None] = {}
        self._changed = threading.Condition()
        self._is_over = False
        limits = settings.limits
        self._clock = TimeBudget(limits.trial_timeout_s, limits.time_budget_s)
        self._is_compiled = settings.workload.compile  # which is not predicted
        self._pool = make_pool(expected=1, on_warning=self._warned, predicts=True)
        is_wanted = (
            settings.batch_size is None
            and not settings.device.is_simulated
            and not self._is_compiled
        )
        self._worker = self._pool.take() if is_wanted else None

    def begin(
        self, settings: Settings, device: DeviceInfo, rows: Sequence[tuple[str, int | None]]
    ) -> None:
        """Begin to predict.

        Args:
            settings: what the real search runs, with the number of its ranks.
            device: the device that the search has opened.
            rows: precisions and lengths to predict, in the order in which they will be asked for.
        """
        choice = simulated_counterpart(device) if device.kind == "cuda" else None
        if choice is None or self._worker is None:
            self._is_over = True
            self._pool.close()
            return
        settings = dataclasses.replace(settings, device=choice)
        run = threading.Thread(
            target=self._run, args=(settings, self._worker, tuple(rows)), daemon=True
        )
        run.start()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
        self._pool.close()

    def result(self, precision: str, seq_len: int | None) -> PrecisionResult | None:
        """Wait for the prediction of a row, but not for long; None if there is none."""
        timeout = min(_TIMEOUT_S, self._clock.left_s)
        if (budget := self._settings.limits.time_budget_s) is not None:
            timeout = min(timeout, _TIMEOUT_SHARE * budget)
        with self._changed:
            self._changed.wait_for(
                lambda: (precision, seq_len) in self._results or self._is_over, timeout=timeout
            )
            return self._results.get((precision, seq_len))

    def _run(
        self, settings: Settings, first: Worker, rows: tuple[tuple[str, int | None], ...]
    ) -> None:
        try:
            self._predict(settings, first, rows)
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _predict(
        self, settings: Settings, first: Worker, rows: tuple[tuple[str, int | None], ...]
    ) -> None:
        opened: Worker | None = first
        with contextlib.suppress(BsfindError, OSError, ValueError):
            device = first.open(settings.device, self._clock.for_start())
            for precision, seq_len in rows:
                own = at_length(settings, seq_len)
                runner = TrialRunner(
                    own, precision, self._pool, self._clock, keeps_worker=True, opened=opened
                )
                search = PrecisionSearch(precision, own, device, runner, Simulated(), Events())
                result = search.run()
                opened = runner.left_over
                is_whole = (
                    not self._is_compiled and result.status == "ok" and result.is_maximum_proven
                )
                with self._changed:
                    self._results[precision, seq_len] = result if is_whole else None
                    self._changed.notify_all()

    def _warned(self, warning: ReportWarning) -> None:
        self._is_compiled = self._is_compiled or warning.code == "uncompiled"


_MIG_SLICE = re.compile(r"\bMIG\b", re.IGNORECASE)


def simulated_counterpart(device: DeviceInfo) -> DeviceChoice | None:
    """Return the simulated GPU that is like a real one; None if the catalogue has none.

    A MIG slice ("NVIDIA A100-SXM4-40GB MIG 1g.5gb") has fewer multiprocessors than its card, and the choice
    of kernels and their workspaces depends on them: the card is not like it. Memory may differ from the
    catalogue's, by ECC or another edition of a card: the simulated GPU has what the real one has.
    """
    if _MIG_SLICE.search(device.name):
        return None
    try:
        gpu = find_gpu(device.name)
    except UsageError:
        return None
    if gpu.compute_capability != device.compute_capability:
        return None
    return DeviceChoice(device="sim", gpu=gpu.key, memory_limit_bytes=device.capacity_bytes)

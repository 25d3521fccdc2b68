"""Workers in a row: while one loads its model, the next one already imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from bsfind.failures.memory_watch import MemoryWatch
from bsfind.records import ReportWarning
from bsfind.worker.client import Worker


class WorkerPool:
    """Starts workers; at its end, none of its processes is left.

    At most one worker is in use at a time, so that each finds the whole device free. The spare one
    has no CUDA context yet and holds no device memory.

    Args:
        expected: how many workers will be needed, if all goes well: no more are started early.
        on_output: called with every line that the user's code prints.
        on_warning: called with what the reader of the report must know.
        watch: notified of the device memory that is still available.
        predicts: whether the device of the workers is known to be simulated.
    """

    def __init__(
        self,
        *,
        expected: int,
        on_output: Callable[[str], None] | None = None,
        on_warning: Callable[[ReportWarning], None] | None = None,
        watch: MemoryWatch | None = None,
        predicts: bool = False,
    ) -> None:
        self._on_output = on_output
        self._on_warning = on_warning
        self._expected = expected
        self._watch = watch or MemoryWatch()
        self._predicts = predicts
        self._in_use: Worker | None = None
        self._spare: Worker | None = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def take(self, variables: Mapping[str, str] | None = None) -> Worker:
        """Kill the worker in use and return a fresh one.

        Args:
            variables: environment variables of it that differ from this process's; it is not started early.
        """
        if self._in_use is not None:
            self._in_use.kill()
        if variables:
            self._in_use = self._start(variables)
            return self._in_use
        spare, self._spare = self._spare, None
        if spare is not None and not spare.is_alive:
            spare.kill()  # with what it has left behind
            spare = None
        self._in_use = spare or self._start()
        self._expected -= 1
        return self._in_use

    def prepare(self) -> None:
        """Start the next worker early, if one is expected, while the one in use is not CPU-bound."""
        if self._expected > 0 and self._spare is None:
            self._spare = self._start()

    def expect_one_more(self) -> None:
        """Take a worker into account that was not expected at the beginning."""
        self._expected += 1

    def expect_no_more(self) -> None:
        """Start no worker early any more: the one in use will do for everything."""
        self._expected = 0
        if self._spare is not None:
            self._spare.kill()
            self._spare = None

    def _start(self, variables: Mapping[str, str] | None = None) -> Worker:
        return Worker(
            *(self._on_output, self._on_warning, variables),
            watch=self._watch,
            predicts=self._predicts,
        )

    def close(self) -> None:
        """Kill all processes; safe to call twice."""
        for worker in (self._in_use, self._spare):
            if worker is not None:
                worker.kill()
        self._in_use = self._spare = None

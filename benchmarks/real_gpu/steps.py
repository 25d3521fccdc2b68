"""A step of the command: a measurement that yields rows, in a process of its own with a time limit.

The process is a fork of one that has imported torch and has not touched CUDA: the import is paid once, and a
step that ends in an illegal access, hangs, or dies leaves the others alone. Rows arrive one by one, so that a
step that is cut short keeps what it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from benchmarks.real_gpu.card_facts import Card

__all__ = [
    "USUAL_BUDGET_S",
    "LeftOutError",
    "Options",
    "Row",
    "Step",
    "StepResult",
    "run_step",
    "seconds_for",
]

Row = dict[str, Any]

USUAL_BUDGET_S = 480.0

_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""

_ERROR = "_error"
_LEFT_OUT = "_left_out"


class LeftOutError(Exception):
    """A step cannot run here; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all steps are told.

    Attributes:
        is_short: few models and layers, for a test of the command itself.
        results: path that the files of a step begin with.
        ends_at: `time.monotonic()` at which the step is ended.
    """

    is_short: bool
    results: str
    ends_at: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the step is ended."""
        return self.ends_at - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step.

    Attributes:
        name: in the results.
        title: in the summary.
        measure: yields the rows, which are JSON; must be called before CUDA is initialised.
        summarise: returns the figures of some rows.
        columns: of the table of rows in the summary; empty: there is none.
        least_s: seconds below which it is not begun.
        kept_share: part of the budget that the steps before it leave for it.
        most_s: seconds after which it is ended, where the budget is `USUAL_BUDGET_S`; with a larger one,
            it has as many times more.
    """

    name: str
    title: str
    measure: Callable[[Card, Options], Iterable[Row]]
    summarise: Callable[[list[Row]], Row]
    columns: tuple[str, ...] = ()
    least_s: float = 5.0
    kept_share: float = 0.01
    most_s: float = 60.0


@dataclass
class StepResult:
    """How a step ended.

    Attributes:
        status: `ok`, `failed`, `cut short` (by its time limit), or `left out`.
        message: why it is not `ok`.
        seconds: that it took.
        rows: what it measured. A row with the `id` of an earlier one has taken its place.
    """

    status: str = "ok"
    message: str | None = None
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Take in a row."""
        for index, known in enumerate(self.rows):
            if "id" in row and known.get("id") == row["id"]:
                self.rows[index] = row
                return
        self.rows.append(row)


def seconds_for(
    step: Step, later: Iterable[Step], seconds_left: float, budget_s: float
) -> float | None:
    """Return how long a step may take, so that later ones have what is kept for them; None: leave it out."""
    seconds = seconds_left - budget_s * sum(other.kept_share for other in later)
    most = step.most_s * max(1.0, budget_s / USUAL_BUDGET_S)
    return min(seconds, most) if seconds >= step.least_s else None


def run_step(
    step: Step, card: Card, options: Options, on_row: Callable[[StepResult], None]
) -> StepResult:
    """Run a step in a fork until it ends or its time is over.

    Args:
        step: which.
        card: the GPU.
        options: for the step; `ends_at` is the limit.
        on_row: called with what there is, after each row.
    """
    result = StepResult()
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            _measure(step, card, options, send, log)
        os.close(send)
        code = None
        try:
            for row in _lines(receive, options.ends_at):
                if row is None:
                    result.status = "cut short"
                    result.message = f"ended after {time.monotonic() - started:.0f} s"
                elif _ERROR in row:
                    result.status, result.message = "failed", row[_ERROR]
                elif _LEFT_OUT in row:
                    result.status, result.message = "left out", row[_LEFT_OUT]
                else:
                    result.add(row)
                    on_row(result)
        finally:
            os.close(receive)
            code = _end(child)
        if code != 0 and result.status == "ok":
            result.status = "failed"
            result.message = f"its process ended with {code}\n{_tail(log)}"
    result.seconds = round(time.monotonic() - started, 1)
    return result


def _measure(step: Step, card: Card, options: Options, send: int, log: IO[bytes]) -> None:
    """Write the rows of a step to a pipe, as the leader of a process group; does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        for stream in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stream, signal.SIG_DFL)
        os.dup2(log.fileno(), 1)  # what models print is no result
        os.dup2(log.fileno(), 2)
        with os.fdopen(send, "w") as rows:
            try:
                for row in step.measure(card, options):
                    _send(rows, row)
            except LeftOutError as error:
                _send(rows, {_LEFT_OUT: str(error)})
            except BaseException:
                _send(rows, {_ERROR: traceback.format_exc()[-2000:]})
        code = 0
    finally:
        os._exit(code)


def _send(rows: IO[str], row: Row) -> None:
    rows.write(json.dumps(row) + "\n")
    rows.flush()


def _lines(pipe: int, ends_at: float) -> Iterator[Row | None]:
    """Yield the rows that arrive; None, and the end, when the time is over."""
    pending = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, ends_at - time.monotonic()))
        if not ready:
            yield None
            return
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from (json.loads(line) for line in lines)


def _end(child: int) -> int:
    """End a step's process group; returns how its first process ended."""
    status = _ended_within(child, 1.0)  # it may be about to end by itself
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, number)
        if status is None:
            status = _ended_within(child, _GRACE_S)
    if status is None:
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def _ended_within(child: int, seconds: float) -> int | None:
    """Return the status of a child that ends in time; None if it does not."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")[-1500:]

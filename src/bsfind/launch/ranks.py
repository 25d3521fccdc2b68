"""Runs the user's command once, hears from its processes, and ends all of them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsfind.launch.inbox import Inbox
from bsfind.launch.records import RankRecord
from bsfind.worker.connection import WorkerProcess
from bsfind.worker.protocol import ProtocolError, decode_message

PROBE = Path(__file__).parent / "probe"
"""The folder that stands first on PYTHONPATH of the command."""

_START = (
    "import sys\n"
    "if sys.path and sys.path[0] == '': del sys.path[0]\n"
    "from bsfind.launch.start import main\n"
    "sys.exit(main())"
)
_POLL_S = 0.05
_LAST_WORDS_S = 1.0
"""How long stacks may take to be written, and records of processes that have ended to be read."""

_ALONE_S = 20.0
"""How long at least the other ranks may go on after one has ended: in a collective they wait for it."""

_STACKS = getattr(signal, "SIGRTMAX", signal.SIGTERM) - 1
"""The signal that makes a process write its stacks; no program is known to use it."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the processes of a trial are asked for.

    Attributes:
        steps: optimizer steps.
        limit_bytes: what the allocator of each may reserve; None: no limit.
        leave_bytes: what each is to leave free on its GPU: several may differ in what they have.
        capacities: by the index of a GPU, what was there for the allocator of its rank in another trial.
        record: whether they record what is asked of the allocator.
        gpu: fields of the `DeviceChoice` of a GPU to simulate; None: there is one.
    """

    steps: int
    limit_bytes: int | None
    leave_bytes: int = 0
    capacities: Mapping[int, int] = field(default_factory=dict)
    record: bool
    gpu: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a run of the command went.

    Attributes:
        records: what its processes told.
        status: its exit status, negative for a signal; None if it was ended, or is not known.
        is_out_of_time: whether it was ended because it took too long.
        last_lines: the last lines that it printed.
        log: file of all that it printed.
        left: processes that could not be ended.
        hears_others: whether processes on other machines could tell.
    """

    records: tuple[RankRecord, ...]
    status: int | None
    is_out_of_time: bool
    last_lines: str
    log: Path
    left: tuple[str, ...]
    hears_others: bool = False

    @property
    def failed(self) -> RankRecord | None:
        """The record of the process that failed first."""
        return failed_first(self.records)

    @property
    def ended_early(self) -> RankRecord | None:
        """The record of the rank that ended first, before it had made its steps."""
        return next(filter(has_ended_early, self.records), None)

    @property
    def ranks(self) -> list[RankRecord]:
        """What each process that trains told last, one for each rank."""
        return list({record.rank: record for record in self.records}.values())

    @property
    def has_unheard_ranks(self) -> bool:
        """Whether ranks run on other machines, of which none is heard."""
        return not self.hears_others and any(map(are_elsewhere, self.records))

    @property
    def is_whole(self) -> bool:
        """Whether every rank has run all steps."""
        return have_all_run(self.records)


def failed_first(records: Iterable[RankRecord]) -> RankRecord | None:
    """Return the record of the process that failed first; None if none has."""
    return next(filter(has_failed, records), None)


def has_failed(record: RankRecord) -> bool:
    """Tell whether a process has failed: `multiprocessing` ends it for an exception that nobody else sees."""
    return record.status in ("oom", "failed") or (
        record.status == "ended" and bool(record.out_of_memory)
    )


def has_ended_early(record: RankRecord) -> bool:
    """Tell whether one of several ranks has ended by itself, before it had made its steps."""
    return record.status == "ended" and record.world_size > 1


def are_elsewhere(record: RankRecord) -> bool:
    """Tell whether some ranks of a training are on other machines."""
    return record.local_world_size < record.world_size


def have_all_run(records: Collection[RankRecord]) -> bool:
    """Tell whether every rank has run all steps."""
    size = max((record.world_size for record in records), default=1)
    return len({record.rank for record in records if record.status == "ok"}) >= size


def run_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    asked: Asked,
    timeout_s: float,
    log: Path,
    on_line: Callable[[str], object],
    listen: tuple[str, int] | None = None,
) -> Run:
    """Run a command until every rank has made its steps, one has failed, or it has ended; then end it all.

    Args:
        command: the program and its arguments.
        variables: environment variables that differ from this process's.
        asked: what its processes are asked for.
        timeout_s: how long it may take, seconds.
        log: file for everything that it prints.
        on_line: called with every line that it prints, in a thread.
        listen: host and port of this machine that ranks on others reach; None: there are none.

    Raises:
        UsageError: nothing can listen there.
    """
    with contextlib.ExitStack() as held:
        inbox = held.enter_context(Inbox(listen))
        told = {**vars(asked), "socket": inbox.address, "key": inbox.key, "signal": _STACKS}
        told["package"] = str(PROBE.parents[1])
        path = (str(PROBE), variables.get("PYTHONPATH") or os.environ.get("PYTHONPATH") or "")
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "BSFIND_PROBE": json.dumps(told),
            "BSFIND_TRIAL": "1",
        }
        output = held.enter_context(log.open("wb", buffering=0))
        process = WorkerProcess(
            on_line,
            {**variables, **own},
            code=_START,
            arguments=command,
            defaults={},
            log=output,
        )
        held.callback(process.kill)
        end = time.monotonic() + timeout_s
        status, is_out_of_time = _follow(process, inbox, end, hears_others=listen is not None)
        if is_out_of_time:
            process.signal_all(_STACKS)
            time.sleep(_LAST_WORDS_S)
        left = process.kill()
        return Run(
            records=tuple(inbox.records),
            status=status,
            is_out_of_time=is_out_of_time,
            last_lines=process.last_lines,
            log=log,
            left=tuple(f"{each.name} (PID {each.pid})" for each in left),
            hears_others=listen is not None,
        )


def _follow(
    process: WorkerProcess, inbox: Inbox, deadline: float, *, hears_others: bool
) -> tuple[int | None, bool]:
    """Wait for the end of a run; return the exit status, and whether the time is over."""
    began = time.monotonic()
    are_alone = False
    while not _is_decided(inbox.records, hears_others=hears_others):
        inbox.read(_POLL_S)
        if not are_alone and any(map(has_ended_early, inbox.records)):
            are_alone = True
            now = time.monotonic()
            deadline = min(deadline, now + max(_ALONE_S, now - began))
        try:
            line = process.next_line(time.monotonic())
        except queue.Empty:
            if time.monotonic() > deadline:
                return None, True
            continue
        inbox.read_all(_LAST_WORDS_S)
        return _status_in(line, process), False
    return None, False


def _is_decided(records: Collection[RankRecord], *, hears_others: bool) -> bool:
    """Tell whether a process has failed, every rank has made its steps, or some are not heard."""
    return (
        failed_first(records) is not None
        or have_all_run(records)
        or (not hears_others and any(map(are_elsewhere, records)))
    )


def _status_in(line: bytes | None, process: WorkerProcess) -> int | None:
    """Return the exit status that the supervisor has written; None: it is not known."""
    if line is None:  # there is none, or the command has ended it
        return process.wait()
    with contextlib.suppress(ProtocolError):
        status = decode_message(line).get("status")
        return status if isinstance(status, int) else None
    return None

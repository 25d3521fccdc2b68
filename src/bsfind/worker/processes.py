"""The processes that a worker starts, directly or not: a supervisor keeps hold of them, and all are ended.

User code starts helpers that leave its process group and session (a logger, a job service, a daemon). On
Linux, the process that bsfind starts is a small supervisor, and the worker is its child: as a subreaper
(prctl(2)), the supervisor becomes the parent of every process below it that loses its own. So whatever the
worker started is found below the supervisor, and nothing else is: the process that uses bsfind as a library
adopts nothing.

If the user's code ends the supervisor, its processes are known by an environment variable.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

MARK = "_BSFIND_WORKER"
"""Environment variable that tells which worker a process stems from."""

ENDED = "ended"
"""`is` of the message that the supervisor writes when the worker has ended (see `worker.protocol`)."""

_PATIENCE_S = 5.0
"""How long a killed process may take to go: one that waits for a device or a file system may not."""

_COLLECTING_S = 1.0

_APART_S = 0.05

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36


class Process(NamedTuple):
    """A process of this machine, as /proc/PID/stat has it."""

    pid: int
    name: str
    parent: int
    started: int
    """Clock ticks after the machine's start."""
    is_zombie: bool
    """Whether it has ended, and its parent has not collected it yet."""
    is_runnable: bool
    """Whether it waits for nothing but a CPU, or has one."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return a process by its PID; None if there is none."""
        try:
            start, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
        except OSError:
            return None
        fields = rest.split()
        if len(fields) < 20:
            return None
        name = start.partition(b"(")[2].decode(errors="replace")
        state = fields[0]
        return cls(
            *(pid, name, int(fields[1]), int(fields[19]), state in (b"Z", b"X"), state == b"R")
        )


def folder() -> str | None:
    """Return where a worker starts: None for the current folder, unless that was removed.

    MKL, which PyTorch loads, ends a process whose folder does not exist.
    """
    try:
        os.getcwd()  # noqa: PTH109 (its error is the answer)
    except FileNotFoundError:
        return os.sep
    return None


def end_all(root: int, mark: str) -> list[Process]:
    """Kill every process that stems from another one, but not that one itself.

    Args:
        root: PID of the supervisor.
        mark: value of `MARK` in the environment of its processes.

    Returns:
        The processes that are left: other users', and those that do not end. On a busy machine, a killed
        one may get no CPU to end with: it is not left.
    """
    start = time.monotonic()
    killed: set[int] = set()
    while found := _stemming_from(root, mark):
        running = [process for process in found if not process.is_zombie]
        left = [each for each in running if not (each.pid in killed and each.is_runnable)]
        for process in running:
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
                killed.add(process.pid)
        # The supervisor collects what has ended, if the user's code lets it.
        if time.monotonic() > start + (_PATIENCE_S if running else _COLLECTING_S):
            return left
        time.sleep(0.005)
    return []


def signal_all(root: int, mark: str, number: int) -> None:
    """Send a signal to every process that stems from another one, but not to that one itself.

    One after the other, so that lines which they write to the same file do not mix.
    """
    for process in _stemming_from(root, mark):
        with contextlib.suppress(OSError):
            os.kill(process.pid, number)
        time.sleep(_APART_S)


def _stemming_from(root: int, mark: str) -> list[Process]:
    own = os.getpid()
    now = Process.of(own)
    if now is None:  # no /proc
        return []
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    running = [process for pid in numbers if (process := Process.of(pid)) is not None]
    below = {root}
    size = 0
    while size < len(below):
        size = len(below)
        below.update(process.pid for process in running if process.parent in below)
    return [
        process
        for process in running
        if process.pid not in (root, own)
        and (process.pid in below or (process.started >= now.started and _has(process, mark)))
    ]


def _has(process: Process, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def supervise() -> None:
    """Go on as the worker, in a new process and a session of its own; this one becomes its supervisor.

    Call it before there are threads. The supervisor ends with the process that has the other end of standard
    input, and ends everything below it then.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    worker = os.fork()
    if worker:
        _Supervisor(worker).run()
    os.setsid()
    # A hang in C code lets no thread run that would notice the end of standard input.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)


class _Supervisor:
    """Collects the processes below it, and tells on standard output when the worker has ended."""

    def __init__(self, worker: int) -> None:
        self._worker = worker

    def run(self) -> None:
        signals, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The system tells so also where another process still holds the pipe, which the caller has forked.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(0, 0)  # POLLHUP: bsfind is gone
        waiting.register(signals, select.POLLIN)
        while True:
            self._collect()
            ready = dict(waiting.poll())
            received = os.read(signals, 4096) if signals in ready else b""
            if 0 in ready or signal.SIGTERM in received or signal.SIGHUP in received:
                break
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system collects
        self._collect()
        end_all(os.getpid(), os.environ.get(MARK, ""))
        os._exit(1)

    def _collect(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid == self._worker:
                    code = os.waitstatus_to_exitcode(status)
                    with contextlib.suppress(OSError):
                        os.write(1, b'\n{"is":"%s","status":%d}\n' % (ENDED.encode(), code))

"""A worker process and the pipes to it, which neither a process that is left behind nor a hang can block."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from bsfind.worker import processes
from bsfind.worker.output import Output

# `-c` puts the current folder on sys.path: taken off, so that a `queue.py` in the user's project
# cannot break the worker. `--app-dir` puts it back once torch is imported.
_START = (
    "import sys\n"
    "if sys.path and sys.path[0] == '': del sys.path[0]\n"
    "from bsfind.worker.loop import main\n"
    "sys.exit(main())"
)
# Sets of strings have the same order in every process, unless the user wants another.
OF_WORKERS = {"PYTHONHASHSEED": "0"}
# Threads that wait for the next operator of a trace need not take the processor's time.
OF_PREDICTING = {**OF_WORKERS, "OMP_WAIT_POLICY": "PASSIVE"}
KILL_GRACE_S = 10.0
_POLL_S = 0.5
_LONGEST_ANSWER = 1 << 28
_MOST_UNREAD = 8


class WorkerProcess:
    """A process that answers requests, in a session of its own: Ctrl-C at the terminal does not reach it.

    Args:
        on_line: called with every line that it prints, in a thread.
        variables: environment variables that differ from this process's.
        code: Python's, to start it; None: that of a worker.
        arguments: those of the code.
        defaults: environment variables that this process's override.
        log: gets everything that it prints.
    """

    def __init__(
        self,
        on_line: Callable[[str], object],
        variables: Mapping[str, str],
        *,
        code: str | None = None,
        arguments: Sequence[str] = (),
        defaults: Mapping[str, str] = OF_WORKERS,
        log: IO[bytes] | None = None,
    ) -> None:
        self._printed = Output(on_line)
        self._log = log
        self._mark = secrets.token_hex(8)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code or _START, *arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=processes.folder(),
            env={**defaults, **os.environ, **variables, processes.MARK: self._mark},
        )
        self._is_over = False
        # Lines of the pipe; None: it has ended, or there is too much on it.
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for stream, read in (
                (self._process.stdout, self._receive),
                (self._process.stderr, self._forward),
            )
        ]
        for thread in self._readers:
            thread.start()

    def _receive(self, stream: IO[bytes]) -> None:
        rest = bytearray()
        with stream, contextlib.suppress(OSError):
            while (data := os.read(stream.fileno(), 1 << 16)) and len(rest) < _LONGEST_ANSWER:
                if b"\n" not in data:
                    rest += data
                    continue
                *lines, last = bytes(rest + data).split(b"\n")
                rest = bytearray(last)
                for line in filter(None, lines):
                    self._lines.put(line)
                if self._lines.qsize() > _MOST_UNREAD:
                    break
        self._lines.put(None)

    def _forward(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(OSError):
            while data := os.read(stream.fileno(), 1 << 16):
                with contextlib.suppress(OSError):  # a full disk: the pipe must be drained
                    if self._log is not None:
                        self._log.write(data)
                    self._printed.feed(data)
            self._printed.end()

    @property
    def is_idle(self) -> bool:
        """Whether it runs and has said nothing that was not asked for."""
        return not self._is_over and self._lines.empty() and self._process.poll() is None

    @property
    def last_lines(self) -> str:
        """The last lines that it printed."""
        return self._printed.last_lines

    def next_line(self, deadline: float) -> bytes | None:
        """Return what comes next through the pipe; None: nothing will.

        Raises:
            queue.Empty: nothing has come by `deadline`.
        """
        while True:
            left = deadline - time.monotonic()
            try:
                return self._lines.get(timeout=max(0.0, min(left, _POLL_S)))
            except queue.Empty:
                if self._process.poll() is not None:  # a process that is left has the pipe
                    return None
                if left <= _POLL_S:
                    raise

    def send(self, data: bytes, deadline: float) -> None:
        """Write a request, to a worker that may have stopped to read.

        Raises:
            TimeoutError: it has not read all of it by `deadline`.
            OSError: it has ended.
        """
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            raise BrokenPipeError
        pipe = self._process.stdin.fileno()
        os.set_blocking(pipe, False)
        while data:
            try:
                data = data[os.write(pipe, data) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(0.01)

    def wait(self) -> int | None:
        """Return the status with which it has ended; None: it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=KILL_GRACE_S)
        return None

    def signal_all(self, number: int) -> None:
        """Send a signal to everything that stems from it."""
        processes.signal_all(self._process.pid, self._mark, number)

    def kill(self) -> list[processes.Process]:
        """Kill it and everything that it started; return what is left. Safe to call twice."""
        left = [] if self._is_over else processes.end_all(self._process.pid, self._mark)
        if sys.platform != "linux":  # there is no supervisor
            with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self.wait()
        self._is_over = True
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for thread in self._readers:  # a process that is left may hold the other end of a pipe
            thread.join(timeout=1.0)
        return left

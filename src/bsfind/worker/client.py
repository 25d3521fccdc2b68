"""The parent's end: starts the worker, asks, waits with a time limit, kills."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from bsfind.errors import BsfindError, InternalError, TimeLimitError, WorkerError
from bsfind.failures.memory_watch import MemoryLeft, MemoryWatch
from bsfind.inspect.inspection import PrecisionInspection
from bsfind.records import (
    Assumption,
    DeviceInfo,
    ModelInfo,
    ModelKind,
    OutputMemory,
    ReportWarning,
    Trial,
    record_of,
)
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.allocator.recording import Recording
from bsfind.units import format_duration
from bsfind.worker.protocol import decode_error, read_message, write_message

# `-c` puts the current folder on sys.path: taken off, so that a `queue.py` in the user's project
# cannot break the worker. `--app-dir` puts it back once torch is imported.
_START = (
    "import sys\n"
    "if sys.path and sys.path[0] == '': del sys.path[0]\n"
    "from bsfind.worker.loop import main\n"
    "sys.exit(main())"
)
# What torch 2.13 writes to stderr whenever it meets the limit, which a search does on purpose.
_EXPECTED_OUTPUT = re.compile(
    r"CUDACachingAllocator\.cpp:\d+\] "
    r"(memory allocation|expandable_segments: memory mapping) failed with OOM"
)
_KILL_GRACE_S = 10.0
_LAST_LINES = 15


class ModelDoesNotFit(Exception):  # noqa: N818 (an answer, not an error)
    """The model alone does not fit on the device."""


@dataclass(frozen=True)
class TrialAnswer:
    """What a worker says about a trial.

    Attributes:
        is_clean: whether the process can run another trial.
        recording: what the trial asked of the allocator, if it ran and that could be recorded.
        refusal: the error to report if the model's code refused the size.
        kind: the kind of model, from the operators of the step; None: unknown.
    """

    trial: Trial
    is_clean: bool
    recording: Recording | None
    refusal: BsfindError | None = None
    kind: ModelKind | None = None


class Worker:
    """One worker process, in a session of its own: Ctrl-C at the terminal does not reach it.

    Args:
        on_output: called with every line that the user's code (or torch) prints.
        on_warning: called with what the reader of the report must know, once for each warning.
        variables: environment variables that differ from this process's.
        watch: notified of the device memory that is still available.

    Attributes:
        assumptions: what the worker has chosen for the steps of the loaded workload, so far.
        output: what the model returned to a loss of bsfind's, so far.

    A context manager: at its end, the process is gone with all that it started. Requests raise what the
    worker reports, TimeLimitError and WorkerError (see `_ask`).
    """

    def __init__(
        self,
        on_output: Callable[[str], None] | None = None,
        on_warning: Callable[[ReportWarning], None] | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        watch: MemoryWatch | None = None,
    ) -> None:
        self._on_output = on_output
        self._on_warning = on_warning
        self._watch = watch or MemoryWatch()
        self.assumptions: tuple[Assumption, ...] = ()
        self.output: OutputMemory | None = None
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # Sets of strings have the same order in every process, unless the user wants another.
            env={"PYTHONHASHSEED": "0", **os.environ, **(variables or {})},
        )
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._receive, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._forward, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _receive(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (message := read_message(stream)) is not None:
                self._answers.put(message)
        self._answers.put(None)

    def _forward(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\r\n")
                if not _EXPECTED_OUTPUT.search(line):
                    self._last_lines.append(line)
                    with contextlib.suppress(OSError):  # a full disk: the pipe must be drained
                        if self._on_output is not None:
                            self._on_output(line)

    def identify(self, choice: DeviceChoice, timeout_s: float) -> str:
        """Return the UUID of the GPU that `open` would open, without taking any of its memory.

        Raises:
            NoDeviceError: there is none.
        """
        request = {"do": "identify", "device": choice.to_json()}
        uuid: str = self._ask(request, timeout_s, "looking for the device")["uuid"]
        return uuid

    def open(self, choice: DeviceChoice, timeout_s: float) -> DeviceInfo:
        """Open the device.

        Raises:
            NoDeviceError: there is none; another one may be opened then.
            UsageError: the memory limit does not suit it.
        """
        request = {"do": "open", "device": choice.to_json()}
        answer = self._ask(request, timeout_s, "opening the device")
        device = record_of(DeviceInfo, answer["device"])
        self._watch.opened(device)
        return device

    def load(self, workload: Workload, precision: str, timeout_s: float) -> ModelInfo:
        """Build the model on the device.

        Raises:
            ModelDoesNotFit: out of memory.
            TargetError, UsageError: the workload does not work.
        """
        request = {"do": "load", "workload": workload.to_json(), "precision": precision}
        answer = self._ask(request, timeout_s, "building the model")
        if answer["is"] == "does_not_fit":
            raise ModelDoesNotFit(answer["message"])
        return ModelInfo(**answer["model"])

    def self_check(self, timeout_s: float) -> list[str]:
        """Return what the simulator misses in this torch, one line each."""
        answer = self._ask({"do": "self_check"}, timeout_s, "checking the simulator")
        problems: list[str] = answer["problems"]
        return problems

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def limit_memory(self, nbytes: int, timeout_s: float) -> None:
        """Let later trials use at most `nbytes` of the device."""
        self._ask({"do": "limit_memory", "bytes": nbytes}, timeout_s, "limiting the memory")

    def run_trial(
        self, batch_size: int, steps: int, timeout_s: float, *, record: bool = True
    ) -> TrialAnswer:
        """Try a batch size; its recording is part of the answer if it is wanted.

        Raises:
            TargetError: the user's code failed, and would at every batch size.
        """
        request = {"do": "trial", "batch_size": batch_size, "steps": steps, "record": record}
        answer = self._ask(request, timeout_s, f"batch size {batch_size}")
        if answer["memory"] is not None:
            self._watch.left(record_of(MemoryLeft, answer["memory"]))
        recording, refusal = answer["recording"], answer["refusal"]
        return TrialAnswer(
            trial=record_of(Trial, answer["trial"]),
            is_clean=answer["clean"],
            recording=record_of(Recording, recording) if recording else None,
            refusal=decode_error(refusal) if refusal else None,
            kind=answer["kind"],
        )

    def load_to_inspect(self, workload: Workload, precision: str, timeout_s: float) -> str:
        """Build the model on the simulated device, whether it fits or not; returns its class.

        Raises:
            TargetError, UsageError: the workload does not work.
        """
        request = {"do": "load_to_inspect", "workload": workload.to_json(), "precision": precision}
        class_name: str = self._ask(request, timeout_s, "building the model")["class_name"]
        return class_name

    def inspect(self, batch_size: int, steps: int, timeout_s: float) -> PrecisionInspection:
        """Return what the memory of the workload is made of at a batch size, once it is loaded.

        Raises:
            TargetError: the user's code failed.
        """
        request = {"do": "inspect", "batch_size": batch_size, "steps": steps}
        answer = self._ask(request, timeout_s, f"batch size {batch_size}")
        return PrecisionInspection.from_json(answer["inspection"])

    def _ask(self, request: dict[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            TimeLimitError: no answer within `timeout_s` seconds; the process is killed.
            WorkerError: the process died.
            BsfindError: what the worker reported.
        """
        try:
            assert self._process.stdin is not None
            write_message(self._process.stdin, request)
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.kill()
            raise TimeLimitError(
                f"no answer after {format_duration(timeout_s)}, {doing}",
                detail=self._last_words(),
                hint="allow more time with `--trial-timeout`, or see why the model hangs",
            ) from None
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise self._death(doing)
        if answer["is"] == "failed":
            error = decode_error(answer)
            if isinstance(error, InternalError):
                self.kill()
            raise error
        if self._on_warning is not None:
            for warning in answer.get("warnings", ()):
                self._on_warning(ReportWarning(**warning))
        if "assumptions" in answer:
            self.assumptions = tuple(Assumption(**made) for made in answer["assumptions"])
            output = answer["output"]
            self.output = OutputMemory(**output) if output is not None else None
        return answer

    def _death(self, doing: str) -> WorkerError:
        try:
            status = self._process.wait(timeout=_KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return WorkerError(f"the worker closed its pipe, {doing}", detail=self._last_words())
        for thread in self._threads:
            thread.join(timeout=1.0)
        if status < 0:
            name = signal.Signals(-status).name
            hint = {
                "SIGKILL": "the system may have run out of host memory (see `dmesg`)",
                "SIGSEGV": "a native extension crashed; `PYTHONFAULTHANDLER=1` shows where",
            }.get(name, "")
            message = f"the worker was killed by {name}, {doing}"
        else:
            hint = "the model's code ended the process itself (`os._exit`, say)"
            message = f"the worker exited with status {status}, {doing}"
        return WorkerError(message, detail=self._last_words(), hint=hint)

    def _last_words(self) -> str:
        return "\n".join(self._last_lines)

    def kill(self) -> None:
        """Kill the process and everything that it started; safe to call twice."""
        # Where the worker is gone, a process that the user's code started may not be.
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        _close(self._process.stdin)
        for thread in self._threads:
            thread.join(timeout=1.0)
        _close(self._process.stdout)
        _close(self._process.stderr)


def _close(stream: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            stream.close()

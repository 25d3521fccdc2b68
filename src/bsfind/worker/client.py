"""The parent's end: starts the worker, asks, waits with a time limit, kills."""

from __future__ import annotations

import contextlib
import queue
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from bsfind.errors import BsfindError, InternalError, TimeLimitError, WorkerError
from bsfind.failures.memory_watch import MemoryLeft, MemoryWatch
from bsfind.inputs import InputSpec
from bsfind.inspect.inspection import PrecisionInspection
from bsfind.records import (
    Assumption,
    DeviceInfo,
    ModelInfo,
    ModelKind,
    OutputMemory,
    ReportWarning,
    record_of,
)
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.allocator.recording import Recording
from bsfind.trial import Trial
from bsfind.units import format_duration
from bsfind.worker import processes
from bsfind.worker.connection import KILL_GRACE_S, OF_PREDICTING, OF_WORKERS, WorkerProcess
from bsfind.worker.protocol import (
    ProtocolError,
    decode_error,
    decode_message,
    encode_message,
    shortened,
)

_LONGEST_WAIT_S = 1e8
"""What a timer can count."""

Answer = TypeVar("Answer")


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
        busy_s: processor time of the worker, seconds.
        sizes_follow: whether trials of other sizes follow from those that ran.
    """

    trial: Trial
    is_clean: bool
    recording: Recording | None
    refusal: BsfindError | None = None
    kind: ModelKind | None = None
    convolution_workspaces: str | None = None
    busy_s: float = 0.0
    sizes_follow: bool = False


class Worker:
    """One worker process, in a session of its own: Ctrl-C at the terminal does not reach it.

    Args:
        on_output: called with every line that the user's code (or torch) prints.
        on_warning: called with what the reader of the report must know, once for each warning.
        variables: environment variables that differ from this process's.
        watch: notified of the device memory that is still available.
        predicts: whether its device is simulated.

    Attributes:
        assumptions: what the worker has chosen for the steps of the loaded workload, so far.
        inputs: the inputs of the loaded workload that follow from the model; none if they were described.
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
        predicts: bool = False,
    ) -> None:
        self._on_warning = on_warning
        self._watch = watch or MemoryWatch()
        self.assumptions: tuple[Assumption, ...] = ()
        self.inputs: tuple[InputSpec, ...] = ()
        self.output: OutputMemory | None = None
        self._searched = "batch size"
        defaults = OF_PREDICTING if predicts else OF_WORKERS
        self._process = WorkerProcess(
            on_output or (lambda _: None), variables or {}, defaults=defaults
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def identify(self, choice: DeviceChoice, timeout_s: float) -> str:
        """Return the UUID of the GPU that `open` would open, without taking any of its memory.

        Raises:
            NoDeviceError: there is none.
        """
        request = {"do": "identify", "device": choice.to_message()}
        return self._ask(request, timeout_s, "looking for the device", _text("uuid"))

    def open(self, choice: DeviceChoice, timeout_s: float) -> DeviceInfo:
        """Open the device.

        Raises:
            NoDeviceError: there is none; another one may be opened then.
            UsageError: the memory limit does not suit it.
        """
        request = {"do": "open", "device": choice.to_message()}

        def read(answer: dict[str, Any]) -> DeviceInfo:
            return record_of(DeviceInfo, answer["device"])

        device = self._ask(request, timeout_s, "opening the device", read)
        self._watch.opened(device)
        return device

    def load(self, workload: Workload, precision: str, timeout_s: float) -> ModelInfo:
        """Build the model on the device.

        Raises:
            ModelDoesNotFit: out of memory.
            TargetError, UsageError: the workload does not work.
        """
        self._searched = workload.searched
        request = {"do": "load", "workload": workload.to_message(), "precision": precision}

        def read(answer: dict[str, Any]) -> ModelInfo:
            if answer["is"] == "does_not_fit":
                raise ModelDoesNotFit(_text("message")(answer))
            return record_of(ModelInfo, answer["model"])

        return self._ask(request, timeout_s, "building the model", read)

    def self_check(self, timeout_s: float) -> list[str]:
        """Return what the simulator misses in this torch, one line each."""

        def read(answer: dict[str, Any]) -> list[str]:
            return [str(problem) for problem in answer["problems"]]

        return self._ask({"do": "self_check"}, timeout_s, "checking the simulator", read)

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.is_idle

    def limit_memory(self, nbytes: int, timeout_s: float) -> None:
        """Let later trials use at most `nbytes` of the device."""
        request = {"do": "limit_memory", "bytes": nbytes}
        self._ask(request, timeout_s, "limiting the memory", lambda _: None)

    def run_trial(
        self,
        batch_size: int,
        steps: int,
        timeout_s: float,
        *,
        record: bool = True,
        exact: bool = False,
    ) -> TrialAnswer:
        """Try a batch size (see `Device.run_trial`); its recording is part of the answer if it is wanted.

        Raises:
            TargetError: the user's code failed, and would at every batch size.
        """
        doing = f"{self._searched} {batch_size}"
        request = {
            **{"do": "trial", "doing": doing, "batch_size": batch_size, "steps": steps},
            **{"record": record, "exact": exact},
        }

        def read(answer: dict[str, Any]) -> TrialAnswer:
            if answer["memory"] is not None:
                self._watch.left(record_of(MemoryLeft, answer["memory"]))
            trial = record_of(Trial, answer["trial"])
            peaks = (trial.peak_allocated_bytes, trial.peak_reserved_bytes, trial.resident_bytes)
            if trial.batch_size != batch_size or min(peak or 0 for peak in peaks) < 0:
                raise ValueError(f"a trial of {trial.batch_size} with peaks {peaks}")
            recording, refusal = answer["recording"], answer["refusal"]
            return TrialAnswer(
                trial=trial,
                is_clean=answer["clean"] is True,
                recording=record_of(Recording, recording) if recording else None,
                refusal=decode_error(refusal) if refusal else None,
                kind=answer["kind"],
                convolution_workspaces=answer["convolution_workspaces"],
                busy_s=float(answer["busy_s"]),
                sizes_follow=answer["sizes_follow"] is True,
            )

        return self._ask(request, timeout_s, doing, read)

    def load_to_inspect(self, workload: Workload, precision: str, timeout_s: float) -> str:
        """Build the model on the simulated device, whether it fits or not; returns its class.

        Raises:
            TargetError, UsageError: the workload does not work.
        """
        request = {
            "do": "load_to_inspect",
            "workload": workload.to_message(),
            "precision": precision,
        }
        return self._ask(request, timeout_s, "building the model", _text("class_name"))

    def inspect(self, batch_size: int, steps: int, timeout_s: float) -> PrecisionInspection:
        """Return what the memory of the workload is made of at a batch size, once it is loaded.

        Raises:
            TargetError: the user's code failed.
        """
        doing = f"batch size {batch_size}"
        request = {"do": "inspect", "doing": doing, "batch_size": batch_size, "steps": steps}

        def read(answer: dict[str, Any]) -> PrecisionInspection:
            return PrecisionInspection.from_json(answer["inspection"])

        return self._ask(request, timeout_s, doing, read)

    def _ask(
        self,
        request: dict[str, Any],
        timeout_s: float,
        doing: str,
        read: Callable[[dict[str, Any]], Answer],
    ) -> Answer:
        """Send a request, wait for its answer, and return what `read` makes of it.

        Raises:
            TimeLimitError: no answer within `timeout_s` seconds; the process is killed.
            WorkerError: the process died, or what came is not the answer to the request.
            BsfindError: what the worker reported.
        """
        number = secrets.token_hex(8)  # which user code that writes to the pipe cannot guess
        deadline = time.monotonic() + min(timeout_s, _LONGEST_WAIT_S)
        try:
            self._process.send(encode_message({**request, "id": number}), deadline)
            line = self._process.next_line(deadline)
        except (queue.Empty, TimeoutError):
            self.kill()
            raise TimeLimitError(
                f"no answer after {format_duration(timeout_s)}, {doing}",
                detail=self._process.last_lines,
                hint="allow more time with `--trial-timeout`; shorter sequences (`--seq-len`) and smaller "
                "images (`--image-size`) take less; or see why the model hangs",
            ) from None
        except OSError:  # the pipe has no reader any more; what it said is still to be read
            line = None
            with contextlib.suppress(queue.Empty):
                line = self._process.next_line(time.monotonic() + KILL_GRACE_S)
        try:
            answer = self._checked(line, number, doing)
            if answer["is"] == "failed":
                raise decode_error(answer)
            found = read(answer)
            warnings = [record_of(ReportWarning, w) for w in answer.get("warnings", ())]
            if "assumptions" in answer:
                made, output = answer["assumptions"], answer["output"]
                self.assumptions = tuple(record_of(Assumption, each) for each in made)
                self.inputs = tuple(map(InputSpec.from_json, answer["inputs"]))
                self.output = record_of(OutputMemory, output) if output is not None else None
        except InternalError:
            self.kill()
            raise
        except (
            ProtocolError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            self.kill()
            raise WorkerError(
                f"what the worker wrote is not its answer, {doing}",
                detail="\n".join(filter(None, (self._process.last_lines, str(error)))),
                hint="the model's code writes to bsfind's pipe, or has replaced functions that bsfind calls",
            ) from None
        for warning in warnings:
            self._warn(warning)
        return found

    def _checked(self, line: bytes | None, number: str, doing: str) -> dict[str, Any]:
        """Return the answer to the request of this number.

        Raises:
            WorkerError: the process has ended.
            ProtocolError: it is not that answer.
        """
        if line is None:
            raise self._death(None, doing)
        answer = decode_message(line)
        if answer.get("is") == processes.ENDED:
            raise self._death(answer.get("status"), doing)
        if answer.get("id") != number:
            raise ProtocolError(f"not the answer to this request: {shortened(repr(line), 200)}")
        return answer

    def _death(self, status: int | None, doing: str) -> WorkerError:
        """Return the error for a worker that has ended with a status; None: with that of the process."""
        if status is None:
            status = self._process.wait()
        self.kill()
        words = self._process.last_lines
        if not isinstance(status, int):
            return WorkerError(f"the worker closed its pipe, {doing}", detail=words)
        if status < 0:
            name = _signal_name(-status)
            hint = {
                "SIGKILL": "the system may have run out of host memory (see `dmesg`)",
                "SIGSEGV": "a native extension crashed; `PYTHONFAULTHANDLER=1` shows where",
            }.get(name, "")
            message = f"the worker was killed by {name}, {doing}"
        else:
            hint = (
                "the model's code ended the process itself (`os._exit`, say), or has replaced functions "
                "that bsfind calls"
            )
            message = f"the worker exited with status {status}, {doing}"
        return WorkerError(message, detail=words, hint=hint)

    def _warn(self, warning: ReportWarning) -> None:
        if self._on_warning is not None:
            self._on_warning(warning)

    def kill(self) -> None:
        """Kill the process and everything that it started; safe to call twice."""
        left = self._process.kill()
        if left:
            names = ", ".join(f"{process.name} (PID {process.pid})" for process in left)
            self._warn(
                ReportWarning(
                    code="processes_left",
                    message=f"processes of the model's code could not be ended: {names}",
                )
            )


def _text(key: str) -> Callable[[dict[str, Any]], str]:
    def read(answer: dict[str, Any]) -> str:
        if not isinstance(answer[key], str):
            raise TypeError(f"`{key}` is no text")
        return str(answer[key])

    return read


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"

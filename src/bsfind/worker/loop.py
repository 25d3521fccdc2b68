"""The worker process: answers requests, one after the other, until its standard input ends."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bsfind.errors import BsfindError, InternalError
from bsfind.settings import DeviceChoice, Workload
from bsfind.worker.protocol import encode_error, read_message, write_message

if TYPE_CHECKING:
    from bsfind.devices.base import Device
    from bsfind.inspect.attribution import InspectedModel


def main() -> int:
    """Serve requests from standard input; returns the exit status."""
    requests, answers = _take_over_standard_streams()
    _die_with_parent()
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    server = _Server()
    # The parent starts a worker before it needs it: the seconds of these imports are free then. A
    # torch that cannot be imported is reported when the device is to be opened.
    with contextlib.suppress(Exception):
        importlib.import_module("bsfind.devices.cuda")
        if inbox.empty():
            importlib.import_module("torch._dynamo")  # the first optimizer does (torch/_compile.py)
    while True:
        try:
            answer = server.answer(inbox.get())
        except BsfindError as error:
            answer = encode_error(error)
        except Exception as error:
            answer = encode_error(InternalError(repr(error), detail=traceback.format_exc()))
        write_message(answers, answer)


def _take_over_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Keep the pipes for the protocol; the user's code gets an empty input, and stderr as stdout."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    # User code may print in the middle of a line that the parent is to show at once.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")
    return requests, answers


def _receive(requests: IO[bytes], inbox: queue.Queue[dict[str, Any]]) -> None:
    """Pass requests on; when the parent is gone, so is the worker, in the middle of a trial too."""
    with contextlib.suppress(OSError, ValueError):
        while (message := read_message(requests)) is not None:
            inbox.put(message)
    os._exit(0)


def _die_with_parent() -> None:
    """Ask Linux to kill this process with its parent: a hang in C code lets no thread run."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class _Server:
    """Answers requests, one method for each; holds the device between them."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._inspected: InspectedModel | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "identify": self._identify,
            "open": self._open,
            "load": self._load,
            "limit_memory": self._limit_memory,
            "trial": self._run_trial,
            "load_to_inspect": self._load_to_inspect,
            "inspect": self._inspect,
            "self_check": self._self_check,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._handlers[request["do"]](request)
        if self._device is not None:
            output = self._device.output
            answer["warnings"] = [asdict(warning) for warning in self._device.take_warnings()]
            answer["output"] = asdict(output) if output is not None else None
            answer["assumptions"] = [asdict(made) for made in self._device.assumptions]
        return answer

    @property
    def _opened(self) -> Device:
        if self._device is None:
            raise InternalError("a request that needs a device came before `open`")
        return self._device

    def _identify(self, request: dict[str, Any]) -> dict[str, Any]:
        from bsfind.devices.cuda_gpu import identify

        return {"is": "identified", "uuid": identify(DeviceChoice.from_json(request["device"]))}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        choice = DeviceChoice.from_json(request["device"])
        if choice.is_simulated:
            from bsfind.devices.simulated import SimulatedDevice

            self._device = SimulatedDevice(choice)
        else:
            from bsfind.devices.cuda import CudaDevice

            self._device = CudaDevice(choice)
        return {"is": "opened", "device": asdict(self._device.describe())}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        from bsfind.devices.base import DoesNotFit

        try:
            model = self._opened.load(_workload(request), request["precision"])
        except DoesNotFit as answer:
            return {"is": "does_not_fit", "message": str(answer)}
        return {"is": "loaded", "model": asdict(model)}

    def _limit_memory(self, request: dict[str, Any]) -> dict[str, Any]:
        self._opened.limit_memory(request["bytes"])
        return {"is": "limited"}

    def _run_trial(self, request: dict[str, Any]) -> dict[str, Any]:
        device = self._opened
        trial = device.run_trial(request["batch_size"], request["steps"], record=request["record"])
        recording, memory, refusal = device.recording, device.memory_left(), device.refusal
        return {
            "is": "trial",
            "trial": asdict(trial),
            "clean": device.is_clean,
            "kind": device.model_kind,
            "memory": asdict(memory) if memory else None,
            "recording": vars(recording) if recording else None,
            "refusal": encode_error(refusal) if refusal else None,
        }

    def _load_to_inspect(self, request: dict[str, Any]) -> dict[str, Any]:
        from bsfind.devices.simulated import SimulatedDevice
        from bsfind.inspect.attribution import InspectedModel

        device = self._opened
        if not isinstance(device, SimulatedDevice):
            raise InternalError("only a simulated device tells who allocates")
        self._inspected = InspectedModel(device, _workload(request), request["precision"])
        return {"is": "loaded", "class_name": self._inspected.class_name}

    def _inspect(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._inspected is None:
            raise InternalError("`inspect` before `load_to_inspect`")
        inspection = self._inspected.at(request["batch_size"], request["steps"])
        return {"is": "inspected", "inspection": inspection.to_json()}

    def _self_check(self, _: dict[str, Any]) -> dict[str, Any]:
        from bsfind.simulation.trace.self_check import problems

        return {"is": "checked", "problems": problems()}


def _workload(request: dict[str, Any]) -> Workload:
    """Return the workload of a request, whose modules can be imported from now on."""
    workload = Workload.from_json(request["workload"])
    # Only now: torch is imported, and nothing in the user's folder can stand in its way.
    app_dir = str(Path(workload.app_dir).resolve())
    if sys.path[0] != app_dir:
        sys.path.insert(0, app_dir)
    return workload

"""The worker process: answers requests, one after the other, until its standard input ends."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from time import process_time
from typing import IO, TYPE_CHECKING, Any

from bsfind import import_path
from bsfind.errors import BsfindError, InternalError
from bsfind.settings import DeviceChoice, Workload
from bsfind.worker.processes import supervise
from bsfind.worker.protocol import ProtocolError, encode_error, encode_message, read_message

if TYPE_CHECKING:
    from bsfind.devices.base import Device
    from bsfind.devices.simulated import SimulatedDevice
    from bsfind.inspect.attribution import InspectedModel

_DOING = {
    "identify": "looking for the device",
    "open": "opening the device",
    "load": "building the model",
    "load_to_inspect": "building the model",
    "self_check": "checking the simulator",
    "limit_memory": "limiting the memory",
}


def main() -> int:
    """Serve requests from standard input; returns the exit status."""
    supervise()
    requests, answers = _take_over_standard_streams()
    import_path.keep_folder()
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    server = _Server()
    # The parent starts a worker before it needs it: the seconds of this import are free then. A
    # torch that cannot be imported is reported when the device is to be opened. Nothing of it is
    # garbage, and a collection looks at all of it.
    gc.disable()
    with contextlib.suppress(Exception):
        importlib.import_module("bsfind.devices.cuda")
    gc.enable()
    get_pid, leave = os.getpid, os._exit
    own = get_pid()
    while True:
        request = inbox.get()
        answer = _answer_to(request, server)
        if get_pid() != own:
            leave(0)  # the user's code has forked, and this is the copy
        answers.write(answer)
        answers.flush()


def _answer_to(request: dict[str, Any], server: _Server) -> bytes:
    """Return the answer to a request, as it is written."""
    try:
        return encode_message({**server.answer(request), "id": request["id"]})
    except BaseException as error:
        doing = _DOING.get(request["do"]) or str(request.get("doing"))
        return encode_message({**encode_error(_reported(error, doing)), "id": request["id"]})


def _reported(error: BaseException, doing: str) -> BsfindError:
    """Return the error that the parent is to raise for an exception that reached the loop."""
    if isinstance(error, BsfindError) and not isinstance(error, InternalError):
        return error
    try:
        from bsfind.workload.user_errors import user_error
    except Exception:  # torch cannot be imported
        return InternalError(repr(error), detail=traceback.format_exc())
    return user_error(error, doing=doing)


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
    with contextlib.suppress(OSError, ProtocolError):
        while (message := read_message(requests)) is not None:
            inbox.put(message)
    os._exit(0)


class _Server:
    """Answers requests, one method for each; holds the device between them."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._simulated: SimulatedDevice | None = None
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
            answer["inputs"] = [spec.to_json() for spec in self._device.inputs]
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
        if self._simulated is not None:  # another one takes its place
            self._simulated.close()
        if choice.is_simulated:
            from bsfind.devices.simulated import SimulatedDevice

            self._device = self._simulated = SimulatedDevice(choice)
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
        begin = process_time()
        trial = device.run_trial(
            *(request["batch_size"], request["steps"]),
            record=request["record"],
            exact=request["exact"],
        )
        recording, memory, refusal = device.recording, device.memory_left(), device.refusal
        return {
            "is": "trial",
            "trial": asdict(trial),
            "clean": device.is_clean,
            "kind": device.model_kind,
            "convolution_workspaces": device.convolution_workspaces,
            "busy_s": process_time() - begin,
            "sizes_follow": device.sizes_follow,
            "memory": asdict(memory) if memory else None,
            "recording": vars(recording) if recording else None,
            "refusal": encode_error(refusal) if refusal else None,
        }

    def _load_to_inspect(self, request: dict[str, Any]) -> dict[str, Any]:
        from bsfind.inspect.attribution import InspectedModel

        if self._simulated is None:
            raise InternalError("only a simulated device tells who allocates")
        self._inspected = InspectedModel(self._simulated, _workload(request), request["precision"])
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
    """Return the workload of a request, whose modules can be imported from now on.

    Raises:
        UsageError: there is no folder to import them from.
    """
    workload = Workload.from_json(request["workload"])
    import_path.make_importable(workload.app_dir)
    return workload

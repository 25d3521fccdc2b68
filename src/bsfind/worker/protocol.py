"""What parent and worker say to each other: one JSON object a line, a request, then its answer.

    parent → worker                              worker → parent
    {"do": "identify", device…}                  {"is": "identified", "uuid"}
    {"do": "open", device…}                      {"is": "opened", "device": DeviceInfo}
    {"do": "load", workload, precision}          {"is": "loaded", "model": ModelInfo}
                                                 {"is": "does_not_fit", "message"}
    {"do": "limit_memory", "bytes"}              {"is": "limited"}
    {"do": "trial", "batch_size", "steps",       {"is": "trial", "trial": Trial, "clean": bool,
     "record": bool}                              "recording": Recording or null,
                                                  "memory": MemoryLeft or null,
                                                  "refusal": a "failed" answer or null}
    {"do": "load_to_inspect", workload,          {"is": "loaded", "class_name"}
     precision}
    {"do": "inspect", "batch_size", "steps"}     {"is": "inspected", "inspection":
                                                  PrecisionInspection}
    {"do": "self_check"}                         {"is": "checked", "problems": [text…]}
                                                 {"is": "failed", "error", message, detail, hint}

After `open`, every answer carries `"warnings": [ReportWarning…]`, what the reader of the report must know
and no earlier answer had, `"assumptions": [Assumption…]`, what bsfind has chosen for the step, and
`"output": OutputMemory`, what the model returned to a loss of bsfind's (null: nothing to any).

The worker's standard input and output carry the protocol; before any code of the user's runs they
are moved out of its reach, so that a `print` of the model lands on standard error.
"""

from __future__ import annotations

import json
from typing import IO, Any

from bsfind import errors
from bsfind.errors import BsfindError, InternalError


def write_message(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message and flush.

    Raises:
        BrokenPipeError: the other side is gone.
    """
    stream.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    stream.flush()


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one message; None at the end of the stream."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message: dict[str, Any] = json.loads(line)
    return message


def encode_error(error: BsfindError) -> dict[str, Any]:
    """Return the answer that makes the parent raise this error."""
    return {
        "is": "failed",
        "error": type(error).__name__,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    }


def decode_error(message: dict[str, Any]) -> BsfindError:
    """Return the error that the worker sent."""
    cls = getattr(errors, message["error"], InternalError)
    error: BsfindError = cls(message["message"], detail=message["detail"], hint=message["hint"])
    return error

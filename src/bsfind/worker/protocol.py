"""What parent and worker say to each other: one JSON object a line, a request, then its answer.

    parent → worker                              worker → parent
    {"do": "identify", device…}                  {"is": "identified", "uuid"}
    {"do": "open", device…}                      {"is": "opened", "device": DeviceInfo}
    {"do": "load", workload, precision}          {"is": "loaded", "model": ModelInfo}
                                                 {"is": "does_not_fit", "message"}
    {"do": "limit_memory", "bytes"}              {"is": "limited"}
    {"do": "trial", "batch_size", "steps",       {"is": "trial", "trial": Trial, "clean": bool,
     "record": bool, "exact": bool}               "recording": Recording or null,
                                                  "memory": MemoryLeft or null,
                                                  "refusal": a "failed" answer or null}
    {"do": "load_to_inspect", workload,          {"is": "loaded", "class_name"}
     precision}
    {"do": "inspect", "batch_size", "steps"}     {"is": "inspected", "inspection":
                                                  PrecisionInspection}
    {"do": "self_check"}                         {"is": "checked", "problems": [text…]}
                                                 {"is": "failed", "error", message, detail, hint}

Each request has an `"id"`, which its answer repeats: the user's code can find the pipe and write to it. On
Linux the supervisor of the worker adds `{"is": "ended", "status"}` when the worker has ended (see
`worker.processes`).

After `open`, every answer carries `"warnings": [ReportWarning…]`, what the reader of the report must know
and no earlier answer had, `"assumptions": [Assumption…]`, what bsfind has chosen for the step, `"inputs":
[InputSpec…]`, the inputs that follow from the model, and `"output": OutputMemory`, what the model returned
to a loss of bsfind's (null: nothing to any).

The worker's standard input and output carry the protocol; before any code of the user's runs they
are moved out of its reach, so that a `print` of the model lands on standard error.
"""

from __future__ import annotations

from json import dumps, loads  # by name: user code may replace what `json` has
from typing import IO, Any

from bsfind import errors
from bsfind.errors import BsfindError

_LONGEST_MESSAGE = 2_000
_LONGEST_DETAIL = 20_000


class ProtocolError(Exception):
    """The other side wrote what is not a message of this protocol."""


def encode_message(message: dict[str, Any]) -> bytes:
    """Return a message as it is written.

    Raises:
        TypeError, ValueError: a value that JSON does not have.
    """
    return dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode_message(line: bytes) -> dict[str, Any]:
    """Return the message of a line.

    Raises:
        ProtocolError: it is none.
    """
    try:
        message = loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {shortened(repr(line), 200)}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"no JSON object: {shortened(repr(line), 200)}")
    return message


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_message(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one message; None at the end of the stream.

    Raises:
        ProtocolError: what came is no message.
    """
    line = stream.readline()
    return decode_message(line) if line.endswith(b"\n") else None


def encode_error(error: BsfindError) -> dict[str, Any]:
    """Return the answer that makes the parent raise this error, or its base that the parent knows."""
    known = (cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
    return {
        "is": "failed",
        "error": next(known).__name__,
        "message": shortened(error.message, _LONGEST_MESSAGE),
        "detail": shortened(error.detail, _LONGEST_DETAIL),
        "hint": shortened(error.hint, _LONGEST_MESSAGE),
    }


def decode_error(message: dict[str, Any]) -> BsfindError:
    """Return the error that the worker sent.

    Raises:
        ProtocolError: it is none of bsfind's.
    """
    cls = getattr(errors, str(message["error"]), None)
    texts = [message[part] for part in ("message", "detail", "hint")]
    if not (isinstance(cls, type) and issubclass(cls, BsfindError)) or not all(
        isinstance(text, str) for text in texts
    ):
        raise ProtocolError(f"no error of bsfind's: {shortened(repr(message), 200)}")
    error: BsfindError = cls(texts[0], detail=texts[1], hint=texts[2])
    return error


def shortened(text: str, most: int) -> str:
    """Return a text with its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    kept = most // 2
    return f"{text[:kept]} … ({len(text) - 2 * kept:,} characters) … {text[-kept:]}"

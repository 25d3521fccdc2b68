"""What a probe in a process of the command tells: one line of JSON (see `launch/probe`)."""

from __future__ import annotations

import builtins
import hmac
import json
from dataclasses import dataclass
from typing import Any, Literal

from bsfind import errors as own_errors
from bsfind.errors import BsfindError
from bsfind.failures.exceptions import plain
from bsfind.records import ReportWarning, record_of

LONGEST_RECORD = 1 << 28
"""Bytes of a record: a recording has some hundred thousand events."""

Status = Literal["ok", "oom", "failed", "ended"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step of the optimizer that steps most.

    Attributes:
        time_s: seconds since the one before, synchronised; None for the first.
        backwards: backward passes since the one before.
        peak_allocated_bytes, peak_reserved_bytes: since the one before.
        held_bytes: allocated after it.
        requested_bytes: all that has been allocated since the process began, freed or not.
        retries: allocation retries since then.
    """

    time_s: float | None
    backwards: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    held_bytes: int
    requested_bytes: int
    retries: int


@dataclass(frozen=True, kw_only=True)
class UsedDevice:
    """The device that a process trains on, and what is left of its memory.

    Attributes:
        used: indices of all devices on which the process holds memory.
    """

    index: int
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    reserved_bytes: int
    cached_bytes: int
    used: tuple[int, ...]

    @property
    def capacity_bytes(self) -> int:
        """What is there for the allocator: all but what contexts, NCCL and other processes take."""
        return self.free_bytes + self.reserved_bytes


@dataclass(frozen=True, kw_only=True)
class RaisedError:
    """An exception, by the names of its classes (the nearest first) and its text; bsfind's has a hint."""

    kinds: tuple[str, ...]
    message: str
    hint: str = ""

    def as_exception(self) -> BaseException:
        """Return an exception that reads the same, of the nearest built-in class."""
        base: type[BaseException] = Exception
        names: list[str] = []
        for kind in self.kinds:
            module, _, name = kind.rpartition(".")
            known = getattr(builtins, name, None) if module == "builtins" else None
            if isinstance(known, type) and issubclass(known, BaseException):
                base = known
                break
            names.append(kind)
        text = self.message
        own: dict[str, Any] = {"__init__": lambda *_: None, "__str__": lambda _: text}
        for kind in reversed(names):
            module, _, name = kind.rpartition(".")
            base = type(name, (base,), {"__module__": module})
        readable: type[BaseException] = type(
            base.__name__, (base,), {"__module__": base.__module__, **own}
        )
        return readable()


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """What one process tells.

    Attributes:
        status: `ok`: all steps ran. `oom`: the allocator had refused something by the end of a step, though
            the command went on. `failed`: an exception ends it. `ended`: it ends by itself.
        on_host: optimizer steps that were made before CUDA was used.
        out_of_memory: the first out-of-memory error that reached Python.
        loaders: batch sizes of data loaders that were iterated, each with the number of samples.
        errors: the exception of `failed`, and what it was raised from or during.
        local_world_size: ranks on this machine.
        limit_bytes: what the allocator was allowed to reserve; None where no limit was set.
        recording: what was asked of the allocator: `entries` of action, address, size and stream.
        warnings: what the reader of a prediction must know.
        convolution_workspaces: what those of a prediction rest on; None: there were none.
    """

    status: Status
    message: str
    out_of_memory: tuple[str, ...]
    pid: int
    rank: int
    world_size: int
    torch_version: str
    on_host: int
    steps: tuple[Step, ...]
    optimizers: int
    loaders: tuple[Any, ...]
    errors: tuple[RaisedError, ...]
    local_world_size: int
    limit_bytes: int | None = None
    device: UsedDevice | None = None
    recording: dict[str, Any] | None = None
    warnings: tuple[ReportWarning, ...] = ()
    convolution_workspaces: str | None = None

    @property
    def error(self) -> BaseException | None:
        """The exception of `failed`, with its causes."""
        first: BaseException | None = None
        for told in reversed(self.errors):
            link = told.as_exception()
            link.__cause__, first = first, link
        return None if first is None else plain(first)

    @property
    def own_error(self) -> BsfindError | None:
        """The error of bsfind's that simulates the GPU there; None: it has raised none."""
        told = next(iter(self.errors), None)
        module, _, name = told.kinds[0].rpartition(".") if told and told.kinds else ("", "", "")
        kind = getattr(own_errors, name, None) if module == own_errors.__name__ else None
        return kind(told.message, hint=told.hint) if told and kind is not None else None

    @property
    def is_exhausted(self) -> bool:
        """Whether next to nothing of the device was left."""
        device = self.device
        if device is None:
            return False
        return device.free_bytes + device.cached_bytes < 0.01 * device.total_bytes


def read_record(line: bytes, key: str) -> RankRecord | None:
    """Return the record of a line; None if it is none of a process that knows the key."""
    try:
        told = json.loads(line)
        if not hmac.compare_digest(str(told.pop("key")), key):
            return None
        return record_of(RankRecord, told)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None

"""Allocator traces with addresses: three of random requests, three of trainings, each in a fork of its own.

A trace is a file in the format of tests/simulation/data/README.md; test_allocator_traces.py there replays it.
The row says whether the model of the allocator gave the same addresses and counters, first with cudaMalloc's
recorded addresses, then with those of the model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer would import it, in each fork
from benchmarks import training
from benchmarks.real_gpu.card_facts import Card
from benchmarks.real_gpu.steps import Options, Row, Step
from benchmarks.workloads import workload_of
from tests.simulation.allocator_traces import (
    Addresses,
    RecordedMemory,
    Trace,
    allocator_for,
    replay,
    result_of,
    store,
)
from tests.simulation.forks import in_fork
from tests.simulation.record_trace import record_program, record_requests

from bsfind.units import GIB

__all__ = ["STEP"]

_STEPS = 3
_FIT_BYTES = 8 * GIB
"""What the traces without a limit need at most."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """A trace to record.

    Attributes:
        name: in the file's name.
        record: returns it, given the fraction of the GPU's memory that is the limit (None: there is none).
        limit_bytes: what the allocator may reserve; None: all.
        settings: PYTORCH_CUDA_ALLOC_CONF.
    """

    name: str
    record: Callable[[float | None], Trace]
    limit_bytes: int | None = None
    settings: str = ""


def _requests(profile: str, seed: int) -> Callable[[float | None], Trace]:
    return lambda fraction: record_requests(profile, seed, fraction=fraction)


def _training(model: str, precision: str, batch_size: int) -> Callable[[float | None], Trace]:
    def run() -> None:
        loaded = training.load(workload_of(model), precision)
        training.train(loaded, batch_size, _STEPS)

    return lambda fraction: record_program(run, fraction)


_LIMIT = GIB
_KINDS = (
    _Kind(name="requests", record=_requests("mixed", 1), limit_bytes=_LIMIT),
    _Kind(name="ties", record=_requests("ties", 2)),
    _Kind(
        name="expandable",
        record=_requests("mixed", 3),
        limit_bytes=_LIMIT,
        settings="expandable_segments:True",
    ),
    _Kind(name="unet-amp", record=_training("unet", "amp-fp16", 16)),
    _Kind(name="lstm", record=_training("lstm", "fp32", 32)),
    _Kind(name="unet-tight", record=_training("unet", "fp32", 16)),
)
_SHORT = ("requests", "unet-tight")


def measure(card: Card, options: Options) -> Iterator[Row]:
    """Record the traces, and yield a row for each."""
    torch.set_num_threads(1)  # threads do not survive a fork
    for kind in _KINDS:
        if options.is_short and kind.name not in _SHORT:
            continue
        if kind.limit_bytes is None and card.free_bytes < _FIT_BYTES:
            yield {"trace": kind.name, "error": "other processes leave too little memory"}
            continue
        if kind.name.endswith("-tight"):
            kind = _tight(kind, card)
        path = Path(f"{options.results}_trace_{kind.name}.json.gz")
        answer = in_fork(lambda kind=kind, path=path: _recorded(kind, card, path))  # type: ignore[misc]
        if answer.get("status") == "error":
            answer = {"error": answer["message"]}
        yield {"trace": kind.name, "file": path.name, **answer}


def _tight(kind: _Kind, card: Card) -> _Kind:
    """Return a trace with so little memory that the allocator has to free its cache."""
    peaks = in_fork(lambda: kind.record(None)["result"])
    if peaks.get("status") == "error":
        return kind  # the trace itself will say why
    between = (peaks["peak_allocated_bytes"] + peaks["peak_reserved_bytes"]) // 2
    return dataclasses.replace(kind, limit_bytes=between)


def _recorded(kind: _Kind, card: Card, path: Path) -> dict[str, Any]:
    if kind.settings:
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = kind.settings
    limit = kind.limit_bytes
    trace = kind.record(None if limit is None else limit / card.total_bytes)
    store(path, trace)
    row = {
        "requests": sum(len(event) == 3 for event in trace["events"]),
        "retries": trace["result"]["num_alloc_retries"],
        "ooms": trace["result"]["num_ooms"],
        "peak_reserved_bytes": trace["result"]["peak_reserved_bytes"],
    }
    given = RecordedMemory(trace["segments"]) if trace["segments"] else None
    return row | {
        "other_addresses": _differences(trace, given),
        "same_result": _is_same_result(trace, given and RecordedMemory(trace["segments"])),
        "same_result_with_modelled_addresses": _is_same_result(trace, None),
    }


def _differences(trace: Trace, memory: RecordedMemory | None) -> int | str:
    """Return how many requests the model answers with another address; a text where it cannot go on."""
    try:
        return len(replay(allocator_for(trace, memory), trace["events"], [], Addresses()))
    except (AssertionError, ValueError, KeyError, AttributeError) as error:
        return repr(error)[:200]


def _is_same_result(trace: Trace, memory: RecordedMemory | None) -> bool:
    allocator = allocator_for(trace, memory)
    try:
        replay(allocator, trace["events"], [], Addresses())
    except (AssertionError, ValueError, KeyError, AttributeError):
        return False
    return result_of(allocator, trace) == trace["result"]


def summarise(rows: list[Row]) -> Row:
    """Return how many traces the model repeats."""
    known = [row for row in rows if "requests" in row]
    return {
        "traces": len(known),
        "with all addresses": sum(row["other_addresses"] == 0 for row in known),
        "with the counters": sum(row["same_result"] for row in known),
        "with the counters, at modelled addresses": sum(
            row["same_result_with_modelled_addresses"] for row in known
        ),
    }


STEP = Step(
    name="traces",
    title="Allocator traces",
    measure=measure,
    summarise=summarise,
    columns=(
        *("trace", "requests", "retries", "ooms"),
        *("other_addresses", "same_result", "same_result_with_modelled_addresses"),
    ),
    most_s=45,
)

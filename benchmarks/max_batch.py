"""The largest batch size for a card of 24 GB: as predicted, and as PyTorch's allocator has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.exact import largest
from tests.simulation.corpus.case import Case, Run
from tests.simulation.forks import in_fork
from tests.simulation.oracle import Oracle
from tests.simulation.simulated import target_of

from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory

__all__ = ["searches"]

_GPU = "rtx3090"
_LIMIT = 1 << 16
_LONGEST_S = 900


def searches(
    cases: Sequence[Case], precisions: Sequence[str] = ("fp32", "amp-fp16")
) -> Iterator[dict[str, Any]]:
    """Yield a row for each model; the precisions take turns."""
    with Oracle(gpu=_GPU) as oracle:
        for index, case in enumerate(cases):
            yield _search(case, precisions[index % len(precisions)], oracle)


def _search(case: Case, precision: str, oracle: Oracle) -> dict[str, Any]:
    row: dict[str, Any] = {"model": case.name, "kind": case.kind, "precision": precision}

    def run(batch_size: int) -> Run:
        return Run(case=case, precision=precision, batch_size=batch_size)

    first = oracle.ask(run(case.batch_sizes[0]), events=False)
    if first["status"] != "ok":
        return row | {"status": "not run", "message": first["message"].splitlines()[-1][:200]}
    answer = in_fork(lambda: _predicted(case, precision, first), _LONGEST_S)
    if answer.get("status") == "error":
        return row | {"status": "failed", "message": answer["message"].splitlines()[-1][:200]}
    predicted = answer["predicted"]
    if predicted >= _LIMIT:
        return row | {"status": "not run", "message": f"more than {_LIMIT} samples fit"}

    def runs(batch_size: int) -> bool:
        result = oracle.ask(run(batch_size), events=False)
        # What is neither (a kernel's limit on sizes) ends the search as a lack of memory does.
        return bool(result["status"] == "ok")

    real = largest(runs, predicted, _LIMIT)
    return row | {"status": "ok", "predicted": predicted, "real": real, "gpu": first["gpu"]}


def _predicted(case: Case, precision: str, result: dict[str, Any]) -> dict[str, Any]:
    from bsfind.simulation.trace.tracer import Tracer

    with Tracer(case.workload, precision, target_of(result)) as tracer:

        def fits(batch_size: int) -> bool:
            program = tracer.program(batch_size, steps=3)
            allocator = CachingAllocator(DeviceMemory(result["free_bytes"]))
            try:
                program.replay(allocator, program.load(allocator))
            except SimulatedOutOfMemoryError:
                return False
            return True

        return {"predicted": largest(fits, 16, _LIMIT)}

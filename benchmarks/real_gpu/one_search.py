"""One measured search beside its prediction: `python -m benchmarks.real_gpu.one_search REQUEST`.

REQUEST is JSON: `model` (of zoo.py), `precisions`, `limit` (of the allocator; null: the whole card), `steps`
(further ones at the recommended size), `seconds`, and `card`. Prints a JSON line for each precision:
`bsfind run` on the GPU, the peaks that are predicted at the batch sizes of its trials, and whether the
recommended size trains on in a fresh process with the same limit. The line is printed again when more of it
is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from benchmarks import training
from benchmarks.card import child_environment
from benchmarks.exact import largest
from benchmarks.real_gpu.card_facts import Card
from benchmarks.workloads import workload_of
from tests.simulation.forks import in_fork

from bsfind.option_fields import arguments_of
from bsfind.settings import DeviceChoice, SearchLimits, Settings, Workload
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory

_SHARE = 0.6
"""Of the seconds that the search may take."""

_FURTHER_S = 25.0
"""What the further steps of one precision may take."""


def main() -> None:
    """Search, predict, run on, and print."""
    import torch
    import torch._dynamo  # the first optimizer would import it, in each fork

    torch.set_num_threads(1)  # threads do not survive a fork
    request = json.loads(sys.argv[1])
    ends_at = time.monotonic() + request["seconds"]
    card = Card.from_json(request["card"])
    workload = workload_of(request["model"])
    started = time.monotonic()
    document = _searched(workload, request)
    seconds = round(time.monotonic() - started, 1)
    device, rows = document["device"], []
    for result in document["results"]:
        key = {name: request[name] for name in ("model", "limit")} | {
            "precision": result["precision"]
        }
        row: dict[str, Any] = {
            "id": "{model} {precision} {limit}".format(**key),
            **key,
            "search_seconds": seconds,
        }
        row["warnings"] = [warning["code"] for warning in document["warnings"]]
        rows.append(row | _found(result, device))
        _show(rows[-1])
    for row, result in zip(rows, document["results"], strict=True):
        if row["largest"]:
            trials = _largest_trials(result, device)
            answer = in_fork(lambda: _predicted(workload, row, trials, card))  # noqa: B023
            peaks = answer.pop("peaks", [{}] * len(trials))
            row["trials"] = [trial | peak for trial, peak in zip(trials, peaks, strict=True)]
            row |= {f"prediction_{name}": value for name, value in answer.items()}
            _show(row)
    for row, result in zip(rows, document["results"], strict=True):
        if row["recommended"] is not None:
            left = min(_FURTHER_S, ends_at - time.monotonic())
            row |= in_fork(lambda: _runs_on(workload, result, device, request["steps"], left))  # noqa: B023
            _show(row)


def _show(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def _searched(workload: Workload, request: dict[str, Any]) -> dict[str, Any]:
    """Return the report of `bsfind run` on this GPU.

    Raises:
        RuntimeError: there is none.
    """
    settings = Settings(
        workload=workload,
        precisions=tuple(request["precisions"]),
        device=DeviceChoice(device="cuda", memory_limit_bytes=request["limit"]),
        limits=SearchLimits(time_budget_s=max(10.0, _SHARE * request["seconds"])),
    )
    done = subprocess.run(
        # Other searches run at the same time, each within its limit.
        [sys.executable, "-m", "bsfind", *arguments_of(settings), "--no-lock", "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    if done.returncode not in (0, 1, 4, 5) or not done.stdout:
        raise RuntimeError(f"bsfind ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _found(result: dict[str, Any], device: dict[str, Any]) -> dict[str, Any]:
    predicted = result["predicted"] or {}
    names = ("max_batch_size", "smallest_failed_batch_size", "recommended_batch_size")
    most, failed, recommended = (result[name] for name in names)
    return {
        "status": result["status"],
        "message": result["message"],
        "largest": most,
        "failed": failed,
        "prediction_at_start": predicted.get("max_batch_size"),
        "recommended": recommended,
        "peak_allocated_bytes": result["peak_allocated_bytes"],
        "peak_reserved_bytes": result["peak_reserved_bytes"],
        "capacity_bytes": device["capacity_bytes"],
        "context_bytes": device["context_bytes"],
        "count": len(result["trials"]),
        "oom": sum(trial["status"] == "oom" for trial in result["trials"]),
    }


def _largest_trials(result: dict[str, Any], device: dict[str, Any]) -> list[dict[str, Any]]:
    """Return peaks and limits of the trials that ran at the three largest sizes, and of the confirmation."""
    confirmation = result["confirmation"]
    ran = {
        trial["batch_size"]: trial
        for trial in result["trials"]
        if trial["status"] == "ok" and trial != confirmation
    }
    chosen = [(ran[size], device["capacity_bytes"]) for size in sorted(ran)[-3:]]
    if confirmation and confirmation["status"] == "ok":
        chosen.append((confirmation, device["budget_bytes"]))
    return [
        {
            "batch_size": trial["batch_size"],
            "steps": trial["steps"],
            "limit": limit,
            "allocated": trial["peak_allocated_bytes"],
            "reserved": trial["peak_reserved_bytes"],
            "retries": trial["num_alloc_retries"],
        }
        for trial, limit in chosen
    ]


def _predicted(
    workload: Workload, row: dict[str, Any], trials: list[dict[str, Any]], card: Card
) -> dict[str, Any]:
    """Return the predicted peaks of trials (none where it does not fit), and the largest batch size."""
    from bsfind.simulation.trace.repetition import with_more_steps
    from bsfind.simulation.trace.tracer import Tracer

    with Tracer(workload, row["precision"], card.spec) as tracer:

        def peaks(batch_size: int, steps: int, limit: int) -> dict[str, Any]:
            traced = tracer.program(batch_size, steps=3)
            program = with_more_steps(traced, steps) or traced
            allocator = CachingAllocator(DeviceMemory(limit), limit_bytes=limit)
            try:
                replayed = program.replay(allocator, program.load(allocator))
            except SimulatedOutOfMemoryError:
                return {}
            return {
                "predicted_allocated": replayed.peak_allocated_bytes,
                "predicted_reserved": replayed.peak_reserved_bytes,
            }

        found = [peaks(trial["batch_size"], trial["steps"], trial["limit"]) for trial in trials]
        capacity = row["capacity_bytes"]
        return {
            "peaks": found,
            "largest": largest(lambda size: bool(peaks(size, 3, capacity)), row["largest"]),
        }


def _runs_on(
    workload: Workload,
    result: dict[str, Any],
    device: dict[str, Any],
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Train at the recommended size in a process of its own, with the limit of the search."""
    import torch

    ends_at = time.monotonic() + seconds
    done = 0

    class OverTime(Exception):  # noqa: N818 - it is no error
        pass

    def count() -> None:
        nonlocal done
        done += 1
        if time.monotonic() > ends_at:
            raise OverTime

    row: dict[str, Any] = {"further_status": "ok"}
    try:
        training.limit_memory(device["capacity_bytes"])
        loaded = training.load(workload, result["precision"])
        torch.cuda.empty_cache()  # as bsfind does: what building the model left behind
        torch.cuda.reset_peak_memory_stats()
        training.train(loaded, result["recommended_batch_size"], steps, count)
    except OverTime:
        row["further_status"] = "cut short"
    except torch.cuda.OutOfMemoryError as error:
        row = {"further_status": "oom", "further_message": str(error)[:400]}
    stats = torch.cuda.memory_stats()
    return row | {
        "further_steps": done,
        "further_allocated": torch.cuda.max_memory_allocated(),
        "further_reserved": torch.cuda.max_memory_reserved(),
        "further_retries": stats["num_alloc_retries"],
    }


if __name__ == "__main__":
    main()

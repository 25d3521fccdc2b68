"""What a search costs beside an ideal one: `python -m benchmarks.search_cost`, or `make search-cost`.

The ideal search knows the answer beforehand and only proves it, without bsfind. For each precision it
needs two processes, one after the other, each of which imports torch, opens the device and builds the
model:

    1.  trains at the largest batch size that runs, and at the smallest above it that does not
    2.  trains at the recommended batch size, for as many steps as bsfind confirms it: a confirmation by a
        fresh process is what bsfind promises

with the sizes and the steps of a report of `bsfind run`. The search's time is that of `bsfind run`, from
start to end. Promise: at most 1.5 times the ideal one's.

Both are measured in turn, and their medians compared. Processor seconds and the load average are reported
beside, since a machine that is busy otherwise spoils the times. On the fake GPU a step costs next to nothing,
so that start-up decides; with `--launch-us` each kernel launch takes longer, which imitates the steps of a
GPU that computes. Writes benchmarks/results/search_cost_GPU.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import card

from bsfind.option_fields import arguments_of
from bsfind.settings import DeviceChoice, Settings, Workload

MODELS = ("resnet50", "vit", "bert", "lstm", "mlp")
PRECISIONS = ("fp32", "amp")
PROMISED = 1.5
STEPS = 3


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names of zoo.py; a selection without any")
    parser.add_argument("--repeat", type=int, default=3, help="how often each is measured")
    parser.add_argument(
        "--launch-us",
        type=float,
        nargs="*",
        default=(0.0, 500.0),
        help="what a kernel launch on the fake GPU takes longer, microseconds; each is measured",
    )
    card.add_options(parser, memory="8GiB")
    arguments = parser.parse_args()
    card.use(arguments)
    from benchmarks.workloads import workload_of

    gpu = card.identity()
    path = card.results_file("search_cost", gpu["gpu"], is_fake=not arguments.real)
    rows: list[dict[str, Any]] = []
    for launch_us in (0.0,) if arguments.real else arguments.launch_us:
        environment = card.child_environment() | {"FAKECUDA_LAUNCH_US": str(launch_us)}
        for model in arguments.models or MODELS:
            row = {"model": model, "launch_us": None if arguments.real else launch_us}
            rows.append(row | compare(workload_of(model), arguments.repeat, environment))
            print(json.dumps(rows[-1]), flush=True)
            card.write(path, {"summary": _summary(rows) | gpu, "rows": rows})
    print(json.dumps(_summary(rows), indent=1))


def compare(workload: Workload, repeat: int, environment: dict[str, str]) -> dict[str, Any]:
    """Return the seconds of `bsfind run` and of the ideal search, in turn `repeat` times."""
    settings = Settings(
        workload=workload, precisions=PRECISIONS, device=DeviceChoice(device="cuda")
    )
    searches: list[_Cost] = []
    ideals: list[_Cost] = []
    for _ in range(repeat):
        begin = _now()
        done = subprocess.run(
            [sys.executable, "-m", "bsfind", *arguments_of(settings), "--json"],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
        searches.append(_now() - begin)
        results = json.loads(done.stdout)["results"]
        begin = _now()
        for result in results:
            for sizes in _ideal(result):
                _train(workload, result["precision"], sizes, environment)
        ideals.append(_now() - begin)
    search_s = statistics.median(cost.seconds for cost in searches)
    ideal_s = statistics.median(cost.seconds for cost in ideals)
    return {
        "search_s": round(search_s, 2),
        "ideal_s": round(ideal_s, 2),
        "ratio": round(search_s / ideal_s, 3),
        "all_search_s": [round(cost.seconds, 2) for cost in searches],
        "all_ideal_s": [round(cost.seconds, 2) for cost in ideals],
        "search_cpu_s": round(statistics.median(cost.cpu_seconds for cost in searches), 2),
        "ideal_cpu_s": round(statistics.median(cost.cpu_seconds for cost in ideals), 2),
        "load_average": round(os.getloadavg()[0], 1),
        "trials": [len(result["trials"]) for result in results],
        "confirmed_steps": [result["confirmation"]["steps"] for result in results],
    }


@dataclass(frozen=True)
class _Cost:
    """Time that passed, and processor time of the processes that have ended; both in seconds."""

    seconds: float
    cpu_seconds: float

    def __sub__(self, begin: _Cost) -> _Cost:
        return _Cost(self.seconds - begin.seconds, self.cpu_seconds - begin.cpu_seconds)


def _now() -> _Cost:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return _Cost(time.monotonic(), children.ru_utime + children.ru_stime)


def _ideal(result: dict[str, Any]) -> list[list[tuple[int, int]]]:
    """Return the batch sizes and steps of an ideal search, for each of its processes."""
    proof = [(result["max_batch_size"], STEPS)]
    if result["smallest_failed_batch_size"] is not None:
        proof.append((result["smallest_failed_batch_size"], STEPS))
    return [proof, [(result["recommended_batch_size"], result["confirmation"]["steps"])]]


def _train(
    workload: Workload,
    precision: str,
    sizes: Sequence[tuple[int, int]],
    environment: dict[str, str],
) -> None:
    """Train in a fresh process: at one size after the other."""
    request = json.dumps([workload.to_message(), precision, list(sizes)])
    subprocess.run(
        [sys.executable, "-c", "import benchmarks.search_cost as s; s.train_in_this_process()"],
        check=True,
        input=request,
        text=True,
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def train_in_this_process() -> None:
    """Do what `_train` asks for on standard input."""
    data, precision, sizes = json.load(sys.stdin)
    workload = Workload.from_json(data)
    sys.path.insert(0, workload.app_dir)
    import torch
    from benchmarks.training import load, train

    loaded = load(workload, precision)
    for batch_size, steps in sizes:
        with contextlib.suppress(torch.OutOfMemoryError):
            train(loaded, batch_size, steps)
    sys.stdout.flush()
    os._exit(0)  # as bsfind ends its workers: no time for taking torch down


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the promise."""
    summary: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "promised": PROMISED,
        "cores": os.cpu_count(),
    }
    for launch_us in dict.fromkeys(row["launch_us"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["launch_us"] == launch_us]
        summary["real" if launch_us is None else f"launch_us_{launch_us:g}"] = {
            "models": len(ratios),
            "median_ratio": round(statistics.median(ratios), 3),
            "largest_ratio": max(ratios),
        }
    return summary


if __name__ == "__main__":
    main()

r"""Compares the simulator with another release of PyTorch: `make torch-releases`, or for one release.

    TORCH=2.9.1 sh tests/fakegpu/install.sh VENV
    FAKE_GPU_COUNT=0 FAKE_CUDNN= PYTHONPATH=src:. BSFIND_FAKEGPU_VENV=VENV \
        sh tests/fakegpu/run.sh VENV python -m benchmarks.torch_releases

The CUDA build of VENV trains on the fake GPU, and is traced without one. Where another Python traces, its
release stands for that of VENV, as `--torch-version` lets it (`make torch-pairs`):

    PYTHONPATH=src:. BSFIND_FAKEGPU_VENV=VENV OTHER_VENV/bin/python -m benchmarks.torch_releases

The runs are those that the tests compare for the release bsfind is developed with (compared_runs.py): small
models that the rules were written for, with a stub in cuDNN's place, so that workspaces of convolutions are
not compared. Writes benchmarks/results/torch_releases_GPU.json, which accuracy_report.py makes the pages and
the package's own figures of.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.accuracy_summary import percentile
from tests.simulation.compared_runs import stub_runs
from tests.simulation.corpus.case import Run
from tests.simulation.event_alignment import normalised
from tests.simulation.known_differences import DIFFERENCES
from tests.simulation.oracle import Oracle
from tests.simulation.simulated import simulate

from bsfind.simulation.torch_releases import cuda_and_cudnn, release_of

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Compare, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of the corpus; all without any")
    parser.add_argument("--gpu", default="h100", help="profile of the fake GPU")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth run only")
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    runs = list(stub_runs())[:: arguments.every]
    if arguments.cases:
        runs = [run for run in runs if run.case.name in arguments.cases]
    rows = []
    with Oracle(gpu=arguments.gpu, cudnn=False) as oracle:
        for run in runs:
            rows.append(_row(run, oracle.ask(run)))
            print(json.dumps(rows[-1]), flush=True)
    found = summary(rows)
    print(json.dumps({name: value for name, value in found.items() if name != "different"}))
    if not (arguments.no_write or arguments.cases):
        _write(arguments.gpu, found)


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(run), "kind": run.case.kind}
    if result["status"] != "ok":
        return row | {"status": "not run", "message": _last_line(result["message"])}
    row |= {"torch": result["torch"], "gpu": result["gpu"]}
    try:
        answer = simulate(run, result, cudnn=False)
    except Exception as error:
        return row | {
            "status": "refused",
            "message": _last_line(f"{type(error).__name__}: {error}"),
        }
    row["status"] = "ok"
    for name in ("allocated", "reserved"):
        real, predicted = result[f"peak_{name}"], getattr(answer, f"peak_{name}")
        row[f"{name}_error"] = 1.0 if predicted is None else round((predicted - real) / real, 6)
        row[f"{name}_differs"] = predicted != real
    events = [*result["load_events"], *result["trial_events"]]
    row["same_events"] = normalised(events) == normalised(
        [*answer.load_events, *answer.trial_events]
    )
    return row


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1][:200]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what was compared, and the rows that are not exact.

    Runs that are known to differ on the fake GPU of every release (it computes no values) count like others.
    """
    compared = [row for row in rows if row["status"] == "ok"]
    exact = [r for r in compared if not (r["allocated_differs"] or r["reserved_differs"])]
    (modelled,) = {row["torch"] for row in compared}
    result: dict[str, Any] = {
        "torch": modelled,
        "traced_by": torch.__version__,
        "cuda": cuda_and_cudnn(release_of(modelled))[0],
        "gpu": compared[0]["gpu"],
        "date": datetime.date.today().isoformat(),
        "runs": len(compared),
        "exact": len(exact),
        "same_events": sum(row["same_events"] for row in compared),
        "refused": sum(row["status"] == "refused" for row in rows),
        "not_run": sum(row["status"] == "not run" for row in rows),
    }
    for name in ("allocated", "reserved"):
        errors = sorted(abs(row[f"{name}_error"]) for row in compared)
        result[name] = {"p95": round(percentile(errors, 0.95), 5), "largest": round(errors[-1], 5)}
    result["different"] = [
        {name: value for name, value in row.items() if name not in ("torch", "gpu")}
        | {"known": f"STUB {row['run']}" in DIFFERENCES}
        for row in rows
        if row["status"] != "ok" or row not in exact or not row["same_events"]
    ]
    return result


def _write(gpu: str, found: dict[str, Any]) -> None:
    """Put the figures of this release, and of what traced it, beside those of others."""
    path = ROOT / "benchmarks" / "results" / f"torch_releases_{gpu}.json"
    releases = json.loads(path.read_text()) if path.exists() else []
    kept = [one for one in releases if _releases(one) != _releases(found)]
    ordered = sorted([*kept, found], key=_releases)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(ordered, indent=1) + "\n")
    partial.replace(path)


def _releases(one: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the release that was predicted, and the one that traced."""
    return release_of(one["torch"]), release_of(one["traced_by"])


if __name__ == "__main__":
    main()

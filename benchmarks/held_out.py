"""Are predicted sizes right for models that bsfind has not seen? `python -m benchmarks.held_out`.

For each model of held_out_models.py, in one precision: `bsfind run --gpu rtx-3090` on a part of the card
(`--limit`), which predicts; then, in processes that bsfind knows nothing of (fresh.py), PyTorch's CUDA build
on the fake GPU says

    real         the largest batch size that runs: the prediction is right if it is this very number
    recommended  whether the recommended size runs 20 steps where the allocator may reserve the capacity
    below        whether the two sizes below it run where it may reserve no more than the budget

Models that read values of their own run with these written into them: the fake GPU reads zeros.

Writes benchmarks/results/held_out_GPU.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from benchmarks import card, fresh
from tests.simulation.corpus.case import Case

from bsfind.option_fields import arguments_of
from bsfind.settings import DeviceChoice, Settings, Workload
from bsfind.units import parse_size

STEPS = 20
_GPU = "rtx-3090"


def main() -> None:
    """Predict, run, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names of cases; all of them without any")
    parser.add_argument("--limit", default="4GiB", help="what the allocator may reserve")
    parser.add_argument("--resume", action="store_true", help="keep what the file has already")
    card.add_options(parser)
    arguments = parser.parse_args()
    card.use(arguments)
    from benchmarks.held_out_models import CASES, precision_of

    gpu = card.identity()
    path = card.results_file("held_out", gpu["gpu"], is_fake=not arguments.real)
    rows = json.loads(path.read_text())["rows"] if arguments.resume and path.exists() else []
    done = {row["model"] for row in rows}
    for index, case in enumerate(CASES):
        if case.name in done or (arguments.models and case.name not in arguments.models):
            continue
        precision = precision_of(index)
        row = {"model": case.name, "kind": case.kind, "precision": precision}
        try:
            row |= compared(case, precision, parse_size(arguments.limit))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            row |= {"status": "not measured", "message": str(error)[-300:]}
        rows.append(row)
        print(json.dumps(row), flush=True)
        summary = summarise(rows) | gpu | {"limit": arguments.limit}
        card.write(path, {"summary": summary, "rows": rows})
    print(json.dumps(summarise(rows), indent=1))


def compared(case: Case, precision: str, limit_bytes: int) -> dict[str, Any]:
    """Return what is predicted for a model, and what is so."""
    start = time.monotonic()
    code, report = predicted(_importable(case.workload), precision, limit_bytes)
    seconds = round(time.monotonic() - start, 1)
    if code != 0:
        return {"status": f"exit {code}", "message": report}
    result = report["results"][0]
    largest, recommended = result["max_batch_size"], result["recommended_batch_size"]
    capacity, budget = (report["device"][key] for key in ("capacity_bytes", "budget_bytes"))
    below = [size for size in (recommended - 1, recommended - 2) if size > 0]
    real, runs, *smaller = fresh.ask(
        _importable(case.written_out or case.workload),
        precision,
        fresh.Largest(near=largest, limit_bytes=capacity),
        fresh.Runs(batch_size=recommended, steps=STEPS, limit_bytes=capacity),
        *(fresh.Runs(batch_size=size, limit_bytes=budget) for size in below),
    )
    return {
        "status": "ok",
        "predicted": largest,
        "real": real,
        "error": round((largest - real) / real, 5),
        "recommended": recommended,
        "recommended_runs": runs,
        "below_run": all(smaller),
        "neighbours": result.get("neighbours"),
        "warnings": [warning["code"] for warning in report["warnings"]],
        "seconds": seconds,
    }


def _importable(workload: Workload) -> Workload:
    return replace(workload, app_dir=str(card.ROOT))


def predicted(workload: Workload, precision: str, limit_bytes: int) -> tuple[int, Any]:
    """Return the exit code of `bsfind run`, and its report, or the end of what it says if it failed."""
    device = DeviceChoice(device="sim", gpu=_GPU, memory_limit_bytes=limit_bytes)
    settings = Settings(workload=workload, precisions=(precision,), device=device)
    done = subprocess.run(
        [sys.executable, "-m", "bsfind", *arguments_of(settings), "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=card.child_environment(),
    )
    if done.returncode != 0:
        return done.returncode, done.stderr.strip()[-300:]
    return 0, json.loads(done.stdout)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the promise."""
    answered = [row for row in rows if row["status"] == "ok"]
    summary: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "models": len(rows),
        "answered": len(answered),
    }
    if answered:
        right = sum(row["error"] == 0 for row in answered)
        summary |= {
            "right": right,
            "right_share": round(right / len(answered), 3),
            "largest_excess": max(0.0, *(row["error"] for row in answered)),
            "largest_shortfall": max(0.0, *(-row["error"] for row in answered)),
            "recommended_run": sum(row["recommended_runs"] for row in answered),
            "sizes_below_run": sum(row["below_run"] for row in answered),
        }
    return summary


if __name__ == "__main__":
    main()

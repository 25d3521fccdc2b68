"""Does what bsfind recommends hold? `python -m benchmarks.recommendation_holds`, or `make holds`.

For many models (wide_corpus.py, which bsfind's rules were not written for, and zoo.py), each in one
precision or, with `--all`, in all of them: `bsfind run` on a part of the card (`--limit`), and then, in
processes that bsfind knows nothing of (fresh.py):

    ran      the recommended batch size runs 50 further steps within the capacity. Promise: always
    limited  the largest batch size that runs where the allocator may reserve no more than the budget (the
             capacity less the headroom): PyTorch gives cached memory back when it meets a limit
    steady   the largest that runs so without doing that again and again, which costs time: not after the
             second step
    peak     the largest that leaves the headroom free where nothing forces it to: its peak of reserved
             memory stays within the budget, in a process that may use the whole capacity

Promise: the recommended size is at least 94 % of what fits with the same headroom. All readings are
reported; bsfind's own is near `steady`, for which it gives up at most 6 %. Writes
benchmarks/results/recommendation_holds_GPU.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import card, fresh

from bsfind.option_fields import arguments_of
from bsfind.settings import DeviceChoice, Settings, Workload
from bsfind.units import parse_size

PRECISIONS = ("fp32", "amp-fp16")
STEPS = 50
PROMISED_RATIO = 0.94


def main() -> None:
    """Search, run on, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names of cases; all of them without any")
    parser.add_argument("--limit", default="4GiB", help="what the allocator may reserve")
    parser.add_argument("--all", action="store_true", help="each model in each precision")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth model only")
    parser.add_argument("--resume", action="store_true", help="keep what the file has already")
    card.add_options(parser)
    arguments = parser.parse_args()
    card.use(arguments)

    gpu = card.identity()
    path = card.results_file("recommendation_holds", gpu["gpu"], is_fake=not arguments.real)
    rows = _known_rows(path) if arguments.resume else []
    done = {(row["model"], row["precision"]) for row in rows}
    for name, kind, workload, precision in _chosen(arguments):
        if (name, precision) in done:
            continue
        row = {"model": name, "kind": kind, "precision": precision}
        try:
            row |= held(workload, precision, parse_size(arguments.limit))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            row |= {"status": "not measured", "message": str(error)[-300:]}
        rows.append(row)
        print(json.dumps(row), flush=True)
        card.write(
            path, {"summary": _summary(rows) | gpu | {"limit": arguments.limit}, "rows": rows}
        )
    print(json.dumps(_summary(rows), indent=1))


def _known_rows(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def _chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Workload, str]]:
    """Yield the name, kind and workload of each case, and a precision; the precisions take turns."""
    from benchmarks import wide_corpus, zoo
    from benchmarks.workloads import workload_of

    cases = [(case.name, case.kind, case.workload, case.precisions) for case in wide_corpus.CASES]
    known = {name for name, *_ in cases}
    cases += [
        (f"zoo_{name}", "zoo", workload_of(name), PRECISIONS)
        for name in zoo.ARGUMENTS
        if f"zoo_{name}" not in known
    ]
    for index, (name, kind, workload, precisions) in enumerate(cases):
        if arguments.models and name not in arguments.models:
            continue
        if index % arguments.every:
            continue
        possible = [precision for precision in PRECISIONS if precision in precisions]
        turn = index // arguments.every % len(possible)
        for precision in possible if arguments.all else possible[turn : turn + 1]:
            yield name, kind, replace(workload, app_dir=str(card.ROOT)), precision


def held(workload: Workload, precision: str, limit_bytes: int) -> dict[str, Any]:
    """Return what bsfind recommends for a model, and whether and how well that holds."""
    settings = Settings(
        workload=workload,
        precisions=(precision,),
        device=DeviceChoice(device="cuda", memory_limit_bytes=limit_bytes),
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bsfind", *arguments_of(settings), "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=card.child_environment(),
    )
    seconds = round(time.monotonic() - start, 1)
    if done.returncode != 0:
        return {"status": f"exit {done.returncode}", "message": done.stderr.strip()[-300:]}
    report = json.loads(done.stdout)
    result = report["results"][0]
    recommended = result["recommended_batch_size"]
    capacity, budget = (report["device"][key] for key in ("capacity_bytes", "budget_bytes"))
    ran, limited, steady, peak = fresh.ask(
        workload,
        precision,
        fresh.Runs(batch_size=recommended, steps=STEPS, limit_bytes=capacity),
        fresh.Largest(near=recommended, limit_bytes=budget),
        fresh.Largest(near=recommended, limit_bytes=budget, steps=20, is_steady=True),
        fresh.Largest(near=recommended, limit_bytes=capacity, peak_bytes=budget),
    )
    return {
        "status": "ok",
        "recommended": recommended,
        "max_batch_size": result["max_batch_size"],
        "peak_reserved_bytes": result["peak_reserved_bytes"],
        "capacity_bytes": capacity,
        "budget_bytes": budget,
        "ran": ran,
        "limited": limited,
        "of_limited": round(recommended / limited, 4),
        "steady": steady,
        "of_steady": round(recommended / steady, 4) if steady else None,
        "peak": peak,
        "of_peak": round(recommended / peak, 4) if peak else None,
        "trials": len(result["trials"]),
        "seconds": seconds,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the promise."""
    answered = [row for row in rows if row["status"] == "ok"]
    summary: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "searches": len(rows),
        "without_an_answer": len(rows) - len(answered),
        "further_steps": STEPS,
        "ran": sum(row["ran"] for row in answered),
        "ran_share": round(statistics.fmean(row["ran"] for row in answered), 4)
        if answered
        else None,
    }
    for reading in ("of_limited", "of_steady", "of_peak"):
        ratios = [row[reading] for row in answered if row[reading]]
        if ratios:
            summary[reading] = {
                "median": round(statistics.median(ratios), 4),
                "smallest": min(ratios),
                "largest": max(ratios),
                "share_promised": round(statistics.fmean(r >= PROMISED_RATIO for r in ratios), 4),
            }
    return summary


if __name__ == "__main__":
    main()

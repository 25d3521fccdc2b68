"""What a prediction is worth to the search on a GPU: `python benchmarks/predicted_searches.py`.

Runs `bsfind run` on the models of zoo.py, on the fake GPU or, with `--real`, on the GPU of this machine,
and compares the maximum that was predicted with the bracket that was measured. Writes
benchmarks/results/predicted_searches_GPU.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from benchmarks import card  # noqa: E402


def main() -> None:
    """Search, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of zoo.py; all of them without any")
    card.add_options(parser)
    arguments = parser.parse_args()
    card.use(arguments)
    import zoo
    from search_accuracy import searched

    rows: list[dict[str, Any]] = []
    for name in arguments.models or zoo.ARGUMENTS:
        report, seconds = searched(name, zoo.ARGUMENTS[name], None)
        for result in report["results"]:
            rows.append(row(name, result, report["device"], seconds))
            print(json.dumps(rows[-1]), flush=True)
        write(rows, is_fake=not arguments.real)
    print(json.dumps(summarise(rows), indent=2))


def row(
    name: str, result: dict[str, Any], device: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return what one search found, and what had been predicted."""
    predicted = (result["predicted"] or {}).get("max_batch_size")
    ran, failed = result["max_batch_size"], result["smallest_failed_batch_size"]
    error = None
    if predicted is not None:
        # How far outside of the bracket that was measured: the truth is somewhere in it.
        nearest = min(max(predicted, ran), failed - 1)
        error = abs(predicted - nearest) / nearest
    return {
        "model": name,
        "precision": result["precision"],
        "predicted": predicted,
        "ran": ran,
        "failed": failed,
        "error": error,
        "trials": len(result["trials"]),
        "out_of_memory": sum(trial["status"] == "oom" for trial in result["trials"]),
        "seconds_both_precisions": round(seconds, 1),
        "gpu": device["name"],
        "torch": device["torch_version"],
    }


def write(rows: list[dict[str, Any]], *, is_fake: bool) -> None:
    """Write what is known so far."""
    path = card.results_file("predicted_searches", rows[0]["gpu"], is_fake=is_fake)
    card.write(path, {"summary": summarise(rows), "rows": rows})


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that matter."""
    errors = sorted(row["error"] for row in rows if row["error"] is not None)
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": rows[0]["gpu"],
        "torch": rows[0]["torch"],
        "searches": len(rows),
        "predicted": len(errors),
        "inside_the_bracket": round(sum(error == 0 for error in errors) / len(errors), 3),
        "median_error": round(statistics.median(errors), 5),
        "p95_error": round(errors[min(len(errors) - 1, int(0.95 * len(errors)))], 5),
        "largest_error": round(errors[-1], 5),
        "median_trials": statistics.median(row["trials"] for row in rows),
        "mean_trials": round(statistics.fmean(row["trials"] for row in rows), 2),
        "mean_out_of_memory": round(statistics.fmean(row["out_of_memory"] for row in rows), 2),
    }


if __name__ == "__main__":
    main()

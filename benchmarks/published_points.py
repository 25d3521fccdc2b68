"""Predicted memory of training against figures that others measured on real GPUs.

    python -m benchmarks.published_points [ID...]        or `make real-points`

`data/published_points.csv` has the figures with their sources, and for each the options of `bsfind check`
that describe it. Its head explains the columns. Where the source's software differed from that of today, the
options say so: it is not the figure that is changed. Writes benchmarks/results/published_points.json; with
IDs, only their rows of it are new.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE / "data" / "published_points.csv"
RESULT = HERE / "results" / "published_points.json"
_OFFLINE = {"HF_HUB_OFFLINE": "1"}


def points() -> Iterator[dict[str, str]]:
    """Yield the rows of the table."""
    with TABLE.open(newline="") as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def command(row: dict[str, str]) -> list[str]:
    """Return the command that predicts a row."""
    command = [sys.executable, "-m", "bsfind", "check", *shlex.split(row["options"])]
    return [*command, "--batch-size", row["batch_size"], "--json"]


def predicted(row: dict[str, str]) -> int | str:
    """Return the bytes that bsfind predicts for a row, or why there are none."""
    done = subprocess.run(
        command(row), capture_output=True, text=True, env=os.environ | _OFFLINE, cwd=HERE.parent
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        return _why(done.stderr)
    return reading(row, report)


def _why(stderr: str) -> str:
    """Return the line of the error."""
    lines = [line for line in stderr.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if line.startswith("error")), lines[-1])[:200]


def reading(row: dict[str, str], report: dict[str, Any]) -> int | str:
    """Return from a report what the source measured, bytes, or why it is not there.

    Args:
        row: a row of the table.
        report: the JSON report of its command.
    """
    (result,) = report["results"]
    if result["status"] != "ok":
        return str(result["message"] or result["status"])[:200]
    (trial,) = result["trials"]
    if row["reading"] == "allocated":
        steps = trial["peaks_by_step"]
        peak = steps[0] if row["step"] == "first" else trial["peak_allocated_bytes"]
    else:
        peak = trial["peak_reserved_bytes"]
    context = report["device"]["context_bytes"] if row["reading"] == "process" else 0
    return int(peak) + int(context) - int(row["outside_pool_bytes"])


def compared(row: dict[str, str]) -> dict[str, Any]:
    """Return a row of the result."""
    found = predicted(row)
    published = int(row["published_bytes"])
    is_number = isinstance(found, int)
    return {
        **{name: row[name] for name in ("id", "source", "url", "gpu", "torch", "reading")},
        "batch_size": int(row["batch_size"]),
        "published_bytes": published,
        "predicted_bytes": found if is_number else None,
        "error": round(found / published - 1, 5) if isinstance(found, int) else None,
        "not_computed": None if is_number else found,
        "blind": row["blind"] == "yes",
        "corrections": row["corrections"],
        "note": row["note"],
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how far predictions are from the figures, of all rows that were computed."""
    errors = [abs(row["error"]) for row in rows if row["error"] is not None]
    within = sum(error <= 0.03 for error in errors)
    return {
        "figures": len(rows),
        "computed": len(errors),
        "median_error": round(statistics.median(errors), 5) if errors else None,
        "within_3_percent": within,
        "largest_error": max(errors, default=None),
    }


def main() -> None:
    """Compare, print, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", nargs="*", help="those to predict anew; all without any")
    chosen = parser.parse_args().ids
    kept = {row["id"]: row for row in json.loads(RESULT.read_text())["rows"]} if chosen else {}
    rows = []
    for row in list(points()):
        if row["id"] in kept and row["id"] not in chosen:
            rows.append(kept[row["id"]])
            continue
        rows.append(compared(row))
        print(json.dumps({k: rows[-1][k] for k in ("id", "error", "not_computed")}), flush=True)
    found = summary(rows)
    print(json.dumps(found))
    document = {"date": datetime.date.today().isoformat(), **found, "rows": rows}
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Predicted largest batch sizes against a published table of a real RTX 3090.

    python -m benchmarks.published_table [MODEL...]        or `make published-table`

timm's authors trained hundreds of models on one card, at the largest batch size of a descending ladder
that ran (data/rtx3090_batch_sizes.csv has every seventh of them or so). A prediction is right if it lies
between what ran and the next rung above, which did not; the top of the ladder has no rung above. The
step is theirs: amp-fp16 without a GradScaler's consequences for memory, SGD with Nesterov momentum, one
tensor at a time, attention by hand, kernels loaded eagerly by CUDA 11.3 (1.56 GiB outside the allocator).
Writes benchmarks/results/published_table_rtx3090.json.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE / "data" / "rtx3090_batch_sizes.csv"
RESULT = HERE / "results" / "published_table_rtx3090.json"
LADDER = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
OPTIONS = (
    *("--gpu", "rtx-3090", "--context-memory", "1.5625GiB", "--precision", "amp-fp16"),
    *("--loss", "cross-entropy", "--optimizer", "sgd", "--optimizer-arg", "momentum=0.9"),
    *("--optimizer-arg", "nesterov=true", "--optimizer-arg", "foreach=false", "--json"),
)


def published() -> Iterator[tuple[str, int, int]]:
    """Yield (model, batch size that ran, side of the images)."""
    with TABLE.open() as lines:
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            yield row["model"], int(row["batch_size"]), int(row["image_size"])


def predicted(model: str, side: int) -> int | str:
    """Return the largest batch size that bsfind predicts, or why there is none."""
    command = [sys.executable, "-m", "bsfind", "run", "benchmarks.published_models:timm_sized"]
    command += ["--model-arg", f"name={model}", "--model-arg", f"side={side}"]
    done = subprocess.run(
        [*command, "--input-shape", f"3,{side},{side}", *OPTIONS],
        capture_output=True,
        text=True,
        env=os.environ | {"TIMM_FUSED_ATTN": "0"},
        cwd=HERE.parent,
    )
    if done.returncode != 0:
        return done.stderr.strip().splitlines()[0][:200]
    return int(json.loads(done.stdout)["results"][0]["max_batch_size"])


def main() -> None:
    """Compare, print, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="all without any")
    chosen = parser.parse_args().models
    rows: list[dict[str, Any]] = []
    for model, ran, side in published():
        if chosen and model not in chosen:
            continue
        found = predicted(model, side)
        above = next((rung for rung in LADDER if rung > ran), None)
        right = isinstance(found, int) and ran <= found and (above is None or found < above)
        rows.append(
            {"model": model, "ran": ran, "failed": above, "predicted": found, "right": right}
        )
        print(json.dumps(rows[-1]), flush=True)
    right_rows = sum(row["right"] for row in rows)
    summary = {
        "models": len(rows),
        "between": right_rows,
        "share": round(right_rows / len(rows), 3),
    }
    print(json.dumps(summary))
    if not chosen:
        document = {"date": datetime.date.today().isoformat(), **summary, "rows": rows}
        RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

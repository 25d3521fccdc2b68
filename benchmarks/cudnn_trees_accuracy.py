"""How often the trees tell the workspace that cuDNN asks for: `make cudnn-accuracy`.

    python -m benchmarks.cudnn_trees_accuracy [ARCHIVE ...]

Compares the archive of the package, with all of its trees and with the first ones only, and other
archives (of `cudnn_trees --target`), with the held-out samples that there are (convolution_samples.py).
Writes benchmarks/results/cudnn_trees.json, which docs/accuracy.md is made of. `--table FILE` writes some
of the samples as the table of tests/simulation/test_convolution_rules.py instead.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median_low
from typing import Any

from benchmarks.convolution_samples import ROOT, Sample, read_samples
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.simulation.kernels import cudnn_engines
from bsfind.simulation.kernels.cudnn_workspace import workspaces_by_tree

RESULT = ROOT / "benchmarks" / "results" / "cudnn_trees.json"
SHIPPED = Path(cudnn_engines.__file__).with_name(cudnn_engines.DATA_FILE)
FEWER = (3, 1)


def first_trees(member: bytes, count: int) -> bytes:
    """Return a member of the archive with its first trees only."""
    answers, trees = struct.unpack_from("<II", member)
    leaves = struct.unpack_from(f"<{trees}I", member, 8)
    known = 8 + 4 * trees
    end = known + 5 * answers + sum(5 * n - 2 for n in leaves[:count])
    kept = leaves[:count]
    return struct.pack(f"<{2 + len(kept)}I", answers, len(kept), *kept) + member[known:end]


def size_with(archive: Path, count: int | None) -> int:
    """Return the bytes of an archive with the first trees of each kind only."""
    target = io.BytesIO()
    with zipfile.ZipFile(archive) as members, zipfile.ZipFile(target, "w") as fewer:
        for name in members.namelist():
            content = members.read(name)
            if count and not name.endswith(("grid", cudnn_engines.MANIFEST)):
                content = first_trees(content, count)
            fewer.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
    return len(target.getvalue())


def compared(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return what pairs of (predicted, real) workspaces differ by."""
    real = sum(truth for _, truth in pairs)
    blocks = sum(-(-guess // 512) == -(-truth // 512) for guess, truth in pairs)
    near = sum(abs(guess - truth) <= max(truth // 100, 1 << 20) for guess, truth in pairs)
    return {
        "samples": len(pairs),
        "exact": round(blocks / len(pairs), 4),
        "within_1_percent_or_1_mib": round(near / len(pairs), 4),
        "error_of_the_sum_of_bytes": round(sum(abs(g - t) for g, t in pairs) / real, 4),
        "bias_of_the_sum_of_bytes": round(sum(g - t for g, t in pairs) / real, 4),
    }


def rows(archive: Path, held_out: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Yield what an archive gives, for its trees and the first ones, by kind of samples and by GPU."""
    cudnn_engines._archive = lambda: zipfile.ZipFile(archive)  # type: ignore[assignment]
    cudnn_engines._grid.cache_clear()
    cudnn_engines._forest.cache_clear()
    manifest = json.loads(zipfile.ZipFile(archive).read(cudnn_engines.MANIFEST))
    fitted = [gpu["fitted_samples"] for gpu in manifest["gpus"].values()]
    every = [workspaces_by_tree(each.problem, GPU_SPECS[each.gpu]) for each in held_out]
    for count in (None, *(FEWER if archive == SHIPPED else ())):
        row: dict[str, Any] = {
            "archive": "shipped" if archive == SHIPPED else "fitted anew",
            "fitted_samples": None if None in fitted else sum(fitted),
            "trees": count or max(map(len, every)),
            "bytes": size_with(archive, count),
        }
        for of_models, gpu in product((False, True), ("all", *GPU_SPECS)):
            pairs = [
                (median_low(guesses[:count]), each.workspace)
                for each, guesses in zip(held_out, every, strict=True)
                if bool(each.model) == of_models and gpu in ("all", each.gpu)
            ]
            kind = "models" if of_models else "drawn"
            row |= {f"{kind} {gpu}": compared(pairs)} if pairs else {}
        yield row


def write_table(target: Path, held_out: Sequence[Sample], count: int = 160) -> None:
    """Write so many samples of each GPU, drawn and of models."""
    chance = random.Random(7)
    with gzip.GzipFile(target, "wb", mtime=0) as file:
        for gpu, of_models in product(sorted(GPU_SPECS), (True, False)):
            some = [each for each in held_out if (each.gpu, bool(each.model)) == (gpu, of_models)]
            for each in chance.sample(some, min(count, len(some))):
                row = [gpu, *each.row[:13]]
                file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")


def main() -> None:
    """Compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("archives", nargs="*", type=Path, help="besides that of the package")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    held_out = [each for gpu in GPU_SPECS for each in read_samples(gpu) if each.is_held_out]
    if arguments.table:
        write_table(arguments.table, held_out)
        return
    document = {
        "cudnn": json.loads(zipfile.ZipFile(SHIPPED).read(cudnn_engines.MANIFEST))["cudnn"],
        "rows": [row for path in (SHIPPED, *arguments.archives) for row in rows(path, held_out)],
    }
    for row in document["rows"]:
        print(*(row[name] for name in ("archive", "trees", "bytes", "drawn all", "models all")))
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How exact is the simulator where cuDNN is asked? `python -m benchmarks.cudnn_asked`, or `make cudnn-asked`.

Compares predictions with PyTorch's CUDA build on the fake GPU. Of the models with which the trees do worst,
once with the workspaces of the fitted trees and once with those of the library that the fake GPU has, too;
of the other convolutional models of simulation_accuracy.py, on the first GPU, with those of the library.
What remains is what bsfind and PyTorch do around cuDNN; nothing is said of cuDNN on a GPU. Writes
benchmarks/results/cudnn_asked.json, of which accuracy_report.py makes the page and the package's own figures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from typing import Any

from benchmarks import accuracy_summary, wide_corpus
from benchmarks.simulation_accuracy import ROOT, compared, grid, results_file
from tests import fakegpu
from tests.simulation.corpus.case import Case
from tests.simulation.oracle import FAKE_VENV, Oracle

from bsfind.simulation.kernels.cudnn_library import VARIABLE

RESULTS = ROOT / "benchmarks" / "results" / "cudnn_asked.json"
MODELS = (
    *("timm_resnet18", "timm_seresnet50", "timm_resnext50_32x4d", "timm_repvgg_a0"),
    *("timm_densenet121", "timm_inception_v3", "torchvision_mc3_18", "zoo_unet3d"),
)
"""Models whose predictions are wrong by the most with the trees, and others that are near them."""


def main() -> None:
    """Compare, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpus", nargs="*", default=["h100", "rtx3090"], help="of the fake GPU")
    parser.add_argument("--only", nargs="*", help="models to run; other rows are kept")
    arguments = parser.parse_args()
    only: list[str] | None = arguments.only
    library = fakegpu.site_packages(FAKE_VENV) / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    named = {"trees": "off", "asked": str(library)}
    rows: list[dict[str, Any]] = []
    if only:
        kept = json.loads(RESULTS.read_text())["rows"]
        rows = [row for row in kept if row["model"] not in only]
    for gpu in arguments.gpus:
        with Oracle(gpu=gpu) as oracle:
            for run, optimizer in grid(_cases(every=gpu == arguments.gpus[0]), full=False):
                if only and run.case.name not in only:
                    continue
                result = oracle.ask(run)
                for source in named if run.case.name in MODELS else ("asked",):
                    os.environ[VARIABLE] = named[source]  # for the fork that predicts
                    rows.append({"source": source, **compared(run, optimizer, result)})
                    print(json.dumps(rows[-1]), flush=True)
    some = [row for row in rows if row["model"] in MODELS]
    document = {
        "date": datetime.date.today().isoformat(),
        **{
            source: accuracy_summary.summary([r for r in some if r["source"] == source], ())
            for source in named
        },
        "every": accuracy_summary.summary(
            [r for r in rows if r["source"] == "asked" and r["gpu"] == rows[0]["gpu"]], ()
        ),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def _cases(*, every: bool) -> list[Case]:
    """Return the models, all convolutional ones or those of `MODELS`."""
    known = json.loads(results_file("h100").read_text())["rows"]
    convolutional = {row["model"] for row in known if row["kind"] == "convolutional"}
    chosen = convolutional if every else MODELS
    return [case for case in wide_corpus.CASES if case.name in chosen]


if __name__ == "__main__":
    main()

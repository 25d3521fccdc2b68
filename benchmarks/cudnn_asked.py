"""What asking cuDNN is worth: `python -m benchmarks.cudnn_asked`, or `make cudnn-asked`.

Compares predictions of a few convolutional models with PyTorch's CUDA build on the fake GPU, once with the
workspaces of the fitted trees and once with those of the library that the fake GPU has, too. What remains
is what bsfind and PyTorch do around cuDNN; nothing is said of cuDNN on a GPU. Writes
benchmarks/results/cudnn_asked.json, of which accuracy_report.py makes the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from typing import Any

from benchmarks import accuracy_summary, wide_corpus
from benchmarks.simulation_accuracy import ROOT, compared, grid
from tests import fakegpu
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
    arguments = parser.parse_args()
    library = fakegpu.site_packages(FAKE_VENV) / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9"
    cases = [case for case in wide_corpus.CASES if case.name in MODELS]
    rows: list[dict[str, Any]] = []
    for gpu in arguments.gpus:
        with Oracle(gpu=gpu) as oracle:
            for run, optimizer in grid(cases, full=False):
                result = oracle.ask(run)
                for source, named in (("trees", "off"), ("asked", str(library))):
                    os.environ[VARIABLE] = named  # for the fork that predicts
                    rows.append({"source": source, **compared(run, optimizer, result)})
                    print(json.dumps(rows[-1]), flush=True)
    document = {
        "date": datetime.date.today().isoformat(),
        **{
            source: accuracy_summary.summary([r for r in rows if r["source"] == source], ())
            for source in ("trees", "asked")
        },
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How exact predictions are, as measured: read from `accuracy.json` beside this file.

The file is written by the benchmark that compares predictions with real runs, never by hand:

    {
      "convolutional": {
        "runs": 60,
        "against": "torch 2.13.0+cu130 on a fake NVIDIA H100, cuDNN's own plans, 2026-11-25",
        "allocated": {"median": 0.0002, "p95": 0.012},
        "reserved": {"median": 0.004, "p95": 0.05}
      },
      "attention": {…}, "recurrent": {…}, "other": {…}
    }

Errors are absolute and a part of the real peak (0.012 is 1.2 %). A kind that is not in the file has
not been measured.
"""

from __future__ import annotations

import functools
import json
from importlib import resources

from bsfind.records import Accuracy, ModelKind

__all__ = ["measured_accuracy"]

_FILE = resources.files("bsfind.simulation") / "accuracy.json"


def measured_accuracy(kind: ModelKind) -> Accuracy | None:
    """Return how exact predictions for a kind of model were found to be; None: not measured."""
    return _kinds().get(kind)


@functools.cache
def _kinds() -> dict[str, Accuracy]:
    if not _FILE.is_file():
        return {}
    document = json.loads(_FILE.read_text(encoding="utf-8"))
    return {kind: Accuracy.from_json(data) for kind, data in document.items()}

"""The measured error of predictions, from `accuracy.json` in this folder.

The benchmark that compares predictions with real runs writes the file:

    {
      "torch": "2.13",
      "against": "torch 2.13.0+cu130 on a fake NVIDIA H100, cuDNN's own plans, 2026-11-25",
      "kinds": {
        "convolutional": {
          "runs": 60,
          "allocated": {"median": 0.0002, "p95": 0.012},
          "reserved": {"median": 0.004, "p95": 0.05}
        },
        "attention": {…}
      },
      "kinds_asked": {
        "convolutional": {…}
      },
      "releases": {
        "2.9": {
          "against": "torch 2.9.1+cu128 on a fake NVIDIA H100, without cuDNN, 2026-12-01",
          "runs": 60,
          "exact": 59,
          "largest": {"allocated": 0.056, "reserved": 0.0}
        },
        "2.11": {…}
      },
      "traces": {
        "2.13": {
          "2.9": {…}
        }
      }
    }

Errors are absolute values, as fractions of the real peak (0.012 is 1.2 %). They hold for that version
of torch and for models whose step consists of such operators; `kinds` for workspaces of convolutions that
fitted trees give, `kinds_asked` for those that cuDNN was asked for. Other releases of torch were compared
too, with small models that the rules were written for: what was found is said, but is no bound. So it is
for releases that were predicted from what another one traces (`traces`, by the release that traced).
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from importlib import resources

from bsfind.records import Accuracy, ModelKind, record_of

_FILE = resources.files("bsfind.simulation.gpus") / "accuracy.json"


@dataclass(frozen=True, kw_only=True)
class ComparedRelease:
    """How the rules compare with a release of torch, on small models and without cuDNN's workspaces.

    Attributes:
        against: what ran, and when.
        runs: how many.
        exact: of how many both peaks were predicted to the byte.
        largest: the largest error of the peaks, `allocated` and `reserved`, as parts of the real ones.
    """

    against: str
    runs: int
    exact: int
    largest: dict[str, float]

    def __str__(self) -> str:
        text = f"{self.exact} of {self.runs} small test models are exact"
        if self.exact < self.runs:
            errors = [
                f"{100 * self.largest[name]:.2g} % {name}" for name in ("allocated", "reserved")
            ]
            text += f", the largest errors are {' and '.join(errors)}"
        return f"{text}, against {self.against}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The results of the benchmark.

    Attributes:
        torch: version of torch that predictions were compared with, such as `2.13`.
        kinds: the errors, by kind of model.
        kinds_asked: likewise, where cuDNN was asked for the workspaces of convolutions.
        releases: other releases of torch that the rules were compared with, by name: `2.9`.
        traces: releases that were predicted from a trace of another one, by the name of that one.
    """

    torch: str
    kinds: dict[ModelKind, Accuracy]
    kinds_asked: dict[ModelKind, Accuracy] = field(default_factory=dict)
    releases: dict[str, ComparedRelease] = field(default_factory=dict)
    traces: dict[str, dict[str, ComparedRelease]] = field(default_factory=dict)

    def accuracy(
        self, kind: ModelKind, torch_version: str, *, asks_cudnn: bool = False
    ) -> Accuracy | None:
        """Return the measured error of predictions, or None if it was not measured (see `why_not`).

        Args:
            kind: kind of the model.
            torch_version: version of torch of the prediction, such as `2.13.0+cpu`.
            asks_cudnn: whether it asked cuDNN for all workspaces of convolutions. Where such predictions
                were not compared, the errors are those with fitted trees.
        """
        if not self.is_for(torch_version):
            return None
        asked = self.kinds_asked.get(kind) if asks_cudnn else None
        return asked or self.kinds.get(kind)

    def why_not(self, kind: ModelKind, torch_version: str) -> str | None:
        """Return why there is no error bound, after the words "Error bound:"; None if there is one."""
        if kind == "recurrent":
            return (
                "none for recurrent layers: the sizes of their workspaces are a formula that was not "
                "compared with cuDNN"
            )
        if not self.is_for(torch_version):
            return f"not measured for torch {_release(torch_version)} (measured for {self.torch})"
        if kind in self.kinds:
            return None
        if kind == "other":
            return "none for models without convolutions and attention: too few were measured"
        return f"not measured for {kind} models"

    def is_for(self, torch_version: str) -> bool:
        """Return whether it was measured with this version of torch, ignoring the patch release."""
        return _release(torch_version) == self.torch

    def compared_release(self, torch_version: str) -> ComparedRelease | None:
        """Return what is known of another release of torch, ignoring the patch release; None: nothing."""
        return self.releases.get(_release(torch_version))

    def compared_traces(self, traced_by: str) -> dict[str, ComparedRelease]:
        """Return what is known of releases that are predicted from what a version of torch traces."""
        return self.traces.get(_release(traced_by), {})


def _release(torch_version: str) -> str:
    return ".".join(torch_version.partition("+")[0].split(".")[:2])


@functools.cache
def measured() -> Measured:
    """Return the results that are shipped with bsfind."""
    document = json.loads(_FILE.read_text(encoding="utf-8"))
    kinds, kinds_asked = (
        {
            kind: record_of(Accuracy, {"against": document["against"], **errors})
            for kind, errors in document[name].items()
        }
        for name in ("kinds", "kinds_asked")
    )
    releases = {
        name: ComparedRelease(**compared) for name, compared in document["releases"].items()
    }
    traces = {
        traced_by: {name: ComparedRelease(**compared) for name, compared in found.items()}
        for traced_by, found in document["traces"].items()
    }
    return Measured(
        torch=document["torch"],
        kinds=kinds,
        kinds_asked=kinds_asked,
        releases=releases,
        traces=traces,
    )

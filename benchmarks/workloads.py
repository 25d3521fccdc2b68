"""The models of zoo.py as bsfind's workloads."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import zoo
from benchmarks.card import ROOT
from tests.simulation.corpus.case import case

from bsfind.settings import Workload

__all__ = ["workload_of"]


def workload_of(model: str) -> Workload:
    """Return the workload of a model of zoo.py, by its name there."""
    made = case("zoo", zoo.__name__, model, model, *zoo.ARGUMENTS[model][1::2])
    return replace(made.workload, app_dir=str(ROOT))

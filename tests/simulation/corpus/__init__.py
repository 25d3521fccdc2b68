"""The corpus: small models of every family, each with the way it is trained. Needs torch alone."""

from __future__ import annotations

import importlib

from tests.simulation.corpus.case import AMP, STANDARD, Case, Run

__all__ = ["AMP", "FAMILIES", "STANDARD", "Case", "Run", "by_name", "cases"]

FAMILIES = (
    "dense_prediction",
    "patches",
    "language",
    "recurrent",
    "audio",
    "graphs",
    "tables",
    "volumes",
    "science",
    "layers",
    "losses",
    "optimizers",
    "techniques",
    "gpu_code",
    "vision",
    "evaluation",
    "streams",
)
"""The modules of this package; each has its models, and `CASES`."""


def cases() -> tuple[Case, ...]:
    """Return every case."""
    modules = (importlib.import_module(f"{__name__}.{family}") for family in FAMILIES)
    return tuple(case for module in modules for case in module.CASES)


def by_name(name: str) -> Case:
    """Return a case by its name.

    Raises:
        KeyError: there is none.
    """
    return {case.name: case for case in cases()}[name]

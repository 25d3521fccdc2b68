"""`torchrun … -m bsfind run`: the first rank searches and starts ranks of its own; the others end at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bsfind.errors import UsageError

_MARK = "TORCHELASTIC_RUN_ID"
"""What torchrun sets in the environment of each rank, besides their numbers (torch 2.6-2.14)."""


def is_started_by_torchrun(environ: Mapping[str, str]) -> bool:
    """Tell whether this process is a rank of torchrun's."""
    return _MARK in environ and "LOCAL_RANK" in environ


def conducts(environ: Mapping[str, str]) -> bool:
    """Tell whether this rank of torchrun's is the one that searches and writes."""
    return environ["LOCAL_RANK"] == "0"


def with_ranks(
    options: Mapping[str, Any], given: Collection[str], environ: Mapping[str, str]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the options of a search on as many ranks as torchrun has started, and which are given.

    Raises:
        UsageError: torchrun has started ranks on several machines, or the options ask for another number.
    """
    ranks = environ.get("LOCAL_WORLD_SIZE", "1")
    if environ.get("WORLD_SIZE", ranks) != ranks:
        raise UsageError(
            "torchrun has started bsfind on several machines: it measures the GPUs of one",
            hint="`bsfind launch --listen HOST -- srun torchrun … train.py --batch-size {batch_size}` "
            "measures a training script on several",
        )
    if options.get("nproc_per_node") is not None:
        raise UsageError(
            "`--nproc-per-node` starts the ranks itself: leave torchrun out, or the option"
        )
    if options.get("gpu") is not None:
        raise UsageError(
            "a prediction runs no ranks: leave torchrun out",
            hint="`--world-size` tells their number",
        )
    if options.get("parallel", "none") == "none":
        raise UsageError(
            "torchrun has started several ranks of bsfind, and nothing says how they share the training",
            hint="add `--parallel ddp`, `fsdp`, `hsdp` or `zero1`",
        )
    return {**options, "nproc_per_node": ranks}, frozenset({*given, "nproc_per_node"})

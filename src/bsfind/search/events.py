"""What is known while a search goes on: for the line that a terminal shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known while the search goes on.

    Attributes:
        precision: being searched.
        doing: `loading`, `trying`, `confirming` or `timing`.
        batch_size: being tried; None while loading.
        best: largest that ran.
        failed: smallest above it that did not.
        trials: how many ran in this precision.
        out_of_memory: how many of them ran out of memory.
    """

    precision: str
    doing: str
    batch_size: int | None = None
    best: int | None = None
    failed: int | None = None
    trials: int = 0
    out_of_memory: int = 0

"""What one trial asked of the allocator: every allocation and release, in order. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


def resident_blocks(segments: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the blocks of a snapshot that are allocated, in the order in which they are numbered."""
    return [
        block
        for segment in segments
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    ]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """The allocations of a trial that ran.

    Blocks are numbered: first those that were allocated when the trial began, in the order of
    `resident_blocks`, then each allocation in the order of the events.

    Attributes:
        batch_size: of the trial.
        available_bytes: what the allocator could have reserved in all, at the end of the trial.
        has_convolutions: cuDNN may have chosen workspaces that it can do without.
        segments: the allocator's segments when the trial began, as `torch.cuda.memory_snapshot()`
            lists them.
        events: `n >= 0` allocates n bytes (as requested, not rounded); `n < 0` releases block
            `-n - 1`.
    """

    batch_size: int
    available_bytes: int
    has_convolutions: bool
    segments: tuple[dict[str, Any], ...]
    events: tuple[int, ...]

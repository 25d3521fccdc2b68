"""The account of the card: who held how much when the allocation failed."""

from __future__ import annotations

from dataclasses import dataclass

from bsfind.explain.figures import Figures, Process
from bsfind.units import GIB

__all__ = ["Account", "make_account"]

_CONTEXT_BYTES = GIB
"""What a process holds outside the caching allocator at most, usually: context, kernels, NCCL."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The parts of the card's memory, which add up to its total as far as the text says.

    Attributes:
        total_bytes: the card.
        allocated_bytes: in tensors.
        cached_bytes: reserved by PyTorch's allocator, in no tensor.
        outside_bytes: this process, outside the allocator: context, kernels, libraries.
        others_bytes: other processes (and what the driver keeps).
        unattributed_bytes: used, and the text does not say by whom.
        free_bytes: free on the card.
        tried_bytes: the allocation that failed.
        overflow_bytes: allocated beyond the card: in the host's memory (Windows, APUs).
        other_processes: those among the named processes that are not this one.
    """

    total_bytes: int | None = None
    allocated_bytes: int | None = None
    cached_bytes: int | None = None
    outside_bytes: int | None = None
    others_bytes: int | None = None
    unattributed_bytes: int | None = None
    free_bytes: int | None = None
    tried_bytes: int | None = None
    overflow_bytes: int = 0
    other_processes: tuple[Process, ...] = ()

    @property
    def drawable(self) -> bool:
        """Whether there is enough to draw."""
        return bool(self.total_bytes) and self.allocated_bytes is not None


def make_account(figures: Figures) -> Account:
    """Make the account of the figures of one text."""
    total, free, allocated = figures.total_bytes, figures.free_bytes, figures.allocated_bytes
    cached, reserved = figures.reserved_unallocated_bytes, figures.reserved_bytes
    this, others = _split_processes(figures)
    outside = max(0, this - reserved) if this is not None and reserved is not None else None
    others_bytes = sum(process.used_bytes for process in others) if others else None
    unattributed = None
    if total is not None and free is not None:
        used = max(0, total - free)
        if this is not None:
            # What is left are the others: named or not (another container's are not visible).
            rest = max(0, used - this)
            others_bytes = max(rest, others_bytes or 0)
        elif reserved is not None:
            unattributed = max(0, used - reserved - (others_bytes or 0))
    elif figures.other_allocations_bytes is not None:
        others_bytes = figures.other_allocations_bytes
    overflow = 0
    if total is not None and reserved is not None:
        overflow = max(0, reserved - total)
    return Account(
        total_bytes=total if total is not None else _mps_total(figures),
        allocated_bytes=allocated,
        cached_bytes=cached,
        outside_bytes=outside,
        others_bytes=others_bytes,
        unattributed_bytes=unattributed,
        free_bytes=free,
        tried_bytes=figures.tried_bytes,
        overflow_bytes=overflow,
        other_processes=others,
    )


def _mps_total(figures: Figures) -> int | None:
    return figures.allowed_bytes if figures.other_allocations_bytes is not None else None


def _split_processes(figures: Figures) -> tuple[int | None, tuple[Process, ...]]:
    """Return what this process uses, and the other processes.

    In a container the driver's process ids are not the container's: PyTorch then names the process
    itself like any other. It is the one that can hold what PyTorch reserved.
    """
    if figures.this_process_bytes is not None:
        return figures.this_process_bytes, figures.processes
    reserved = figures.reserved_bytes
    if reserved is None or not figures.processes:
        return None, figures.processes
    rounding = 0.01 * reserved + (10 << 20)
    able = [p for p in figures.processes if p.used_bytes >= reserved - rounding]
    if not able:
        return None, figures.processes
    own = min(able, key=lambda process: process.used_bytes)
    used = (
        figures.total_bytes - figures.free_bytes
        if figures.total_bytes is not None and figures.free_bytes is not None
        else None
    )
    named = sum(process.used_bytes for process in figures.processes)
    if own.used_bytes - reserved <= 4 * _CONTEXT_BYTES or (
        used is not None and named + reserved > used + rounding
    ):
        return own.used_bytes, tuple(p for p in figures.processes if p is not own)
    return None, figures.processes

"""The account of the card: who held how much when the allocation failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bsfind.explain.figures import Figures, Process
from bsfind.units import GIB

PARTS = (
    *("allocated_bytes", "cached_bytes", "outside_bytes", "others_bytes", "unattributed_bytes"),
    "free_bytes",
)
"""Names of the parts of an account."""

_CONTEXT_BYTES = GIB
"""What a process holds outside the caching allocator at most, usually: context, kernels, NCCL."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The parts of the card's memory, which add up to its total as far as the text says.

    Attributes:
        total_bytes: the card; for MPS, what the process may use.
        allocated_bytes: in tensors.
        cached_bytes: reserved by PyTorch's allocator, in no tensor.
        outside_bytes: this process, outside the allocator: context, kernels, libraries, Metal.
        others_bytes: other processes (and what the driver keeps).
        unattributed_bytes: used, and the text does not say by whom.
        free_bytes: free on the card.
        tried_bytes: the allocation that failed.
        overflow_bytes: what the text's figures add up to beyond the card: then the parts are None.
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

    @property
    def parts(self) -> dict[str, int]:
        """The parts that are known, by name."""
        known = {name: getattr(self, name) for name in PARTS}
        return {name: size for name, size in known.items() if size is not None}


def make_account(figures: Figures) -> Account:
    """Make the account of the figures of one text.

    Parts that are more than the card are not told: memory that overflowed into the host's (Windows,
    ROCm and integrated GPUs), or figures of different moments.
    """
    account = _mps(figures) if figures.other_allocations_bytes is not None else _card(figures)
    total, parts = account.total_bytes, account.parts
    if total is None:
        return account
    excess = sum(parts.values()) - total
    if excess > figures.rounding():
        return _with(account, dict.fromkeys(PARTS), overflow_bytes=excess)
    if excess > 0:  # of rounding
        largest = max(parts, key=parts.__getitem__)
        return _with(account, {largest: parts[largest] - excess})
    return account


def _with(account: Account, parts: Mapping[str, int | None], overflow_bytes: int = 0) -> Account:
    changed: dict[str, Any] = dict(parts)
    return replace(account, overflow_bytes=overflow_bytes, **changed)


def _card(figures: Figures) -> Account:
    total, free = figures.total_bytes, figures.free_bytes
    reserved = figures.reserved_bytes
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
    return Account(
        total_bytes=total,
        allocated_bytes=figures.allocated_bytes,
        cached_bytes=figures.reserved_unallocated_bytes,
        outside_bytes=outside,
        others_bytes=others_bytes,
        unattributed_bytes=unattributed,
        free_bytes=free,
        tried_bytes=figures.tried_bytes,
        other_processes=others,
    )


def _mps(figures: Figures) -> Account:
    """Make the account of MPS: the limit, and what this process holds in and outside PyTorch's allocator.

    aten/src/ATen/mps/MPSAllocator.mm (torch 1.13-2.13): other allocations are `currentAllocatedSize` of
    the Metal device, which counts this process, less PyTorch's own.
    """
    limit, outside = figures.allowed_bytes, figures.other_allocations_bytes
    held = (figures.allocated_bytes or 0) + (outside or 0)
    return Account(
        total_bytes=limit,
        allocated_bytes=figures.allocated_bytes,
        outside_bytes=outside,
        free_bytes=max(0, limit - held) if limit is not None else None,
        tried_bytes=figures.tried_bytes,
    )


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

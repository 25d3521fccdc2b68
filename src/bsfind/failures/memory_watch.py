"""Does the GPU still have the memory that it had when the search began? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bsfind.records import DeviceInfo, GpuProcess, ReportWarning
from bsfind.units import MIB, format_bytes

_SLACK_BYTES = 256 * MIB
_SLACK_FRACTION = 0.01
"""Variation of what desktops and drivers hold; the larger of the two counts."""


@dataclass(frozen=True, kw_only=True)
class MemoryLeft:
    """What a worker finds after a trial.

    Attributes:
        available_bytes: what PyTorch could use now: free memory, and that of its own pool.
        others: other processes that hold memory, if the driver tells.
    """

    available_bytes: int
    others: tuple[GpuProcess, ...] = ()


class MemoryWatch:
    """Notices if another process takes memory of the GPU during a search."""

    def __init__(self) -> None:
        self._first: DeviceInfo | None = None
        self._least: MemoryLeft | None = None

    def opened(self, device: DeviceInfo) -> None:
        """Take in what a worker found when it opened the device; the first is what counts."""
        if self._first is None:
            self._first = device
        self.left(MemoryLeft(available_bytes=_free_bytes(device), others=device.other_processes))

    def left(self, left: MemoryLeft) -> None:
        """Take in what a worker found later."""
        if self._least is None or left.available_bytes < self._least.available_bytes:
            self._least = left

    @property
    def warning(self) -> ReportWarning | None:
        """What the reader of the answer must know; None if the memory stayed."""
        first, least = self._first, self._least
        if first is None or least is None or first.kind != "cuda":
            return None
        taken = _free_bytes(first) - least.available_bytes
        # Beyond a `--memory-limit`, what is taken is not missing.
        is_missing = least.available_bytes < first.capacity_bytes
        if not is_missing or taken <= max(_SLACK_BYTES, _SLACK_FRACTION * first.total_bytes):
            return None
        who = _who(first.other_processes, least.others) or "another process"
        return ReportWarning(
            code="memory_taken",
            message=f"{who} took {format_bytes(taken)} of this GPU during the search: the answer holds "
            f"for the {format_bytes(max(0, least.available_bytes))} that were left",
            hint="run it again when nobody else uses the GPU",
        )


def _who(before: Sequence[GpuProcess], after: Sequence[GpuProcess]) -> str:
    """Name the processes that are new, or have grown."""
    had = {process.pid: process.used_bytes or 0 for process in before}
    grown = [p for p in after if p.pid not in had or (p.used_bytes or 0) > had[p.pid]]
    return " and ".join(f"{p.name or 'a process'} (PID {p.pid})" for p in grown)


def _free_bytes(device: DeviceInfo) -> int:
    """Return what was free, without what NCCL would take where it does not run."""
    return device.free_bytes + (device.nccl_bytes or 0)

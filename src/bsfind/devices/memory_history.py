"""The caching allocator's own history of a trial (torch.cuda.memory, private but documented API).

The functions used here have an underscore, though PyTorch's page "Understanding CUDA Memory Usage"
documents them (torch 2.1-2.13). Nothing depends on them but the quality of a guess: where they are
missing, or record something that this module does not know, there is no recording.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from bsfind.simulation.allocator.recording import Recording, resident_blocks

_MAX_ENTRIES = 500_000
_SEGMENT_KEYS = ("address", "total_size", "stream", "segment_type")
_BLOCK_KEYS = ("address", "size", "requested_size", "state")
_IGNORED_ACTIONS = frozenset(
    (
        "segment_alloc",
        "segment_free",
        "free_completed",
        "oom",
        "snapshot",
        "segment_map",
        "segment_unmap",
    )
)


class MemoryHistory:
    """Records what one trial allocates and releases.

    Args:
        device: whose allocator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._segments: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what happens inside."""
        self._entries = []
        try:
            self._segments = [
                segment
                for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
                if segment["device"] == self._device.index
            ]
            torch.cuda.memory._record_memory_history("all", context=None, max_entries=_MAX_ENTRIES)
        except (AttributeError, TypeError, KeyError):
            yield
            return
        try:
            yield
            with contextlib.suppress(RuntimeError, KeyError, IndexError):
                traces = torch.cuda.memory._snapshot(self._device)["device_traces"]
                self._entries = traces[self._device.index or 0]
        finally:
            with contextlib.suppress(RuntimeError):
                torch.cuda.memory._record_memory_history(None)

    def recording(
        self, batch_size: int, available_bytes: int, *, has_convolutions: bool
    ) -> Recording | None:
        """Return what was recorded; None if it is incomplete or beyond what a replay models."""
        if not self._entries or len(self._entries) >= _MAX_ENTRIES:
            return None
        try:
            segments = tuple(_slim_segment(segment) for segment in self._segments)
            events = _numbered(segments, self._entries)
        except (KeyError, ValueError):
            return None
        return Recording(
            batch_size=batch_size,
            available_bytes=available_bytes,
            has_convolutions=has_convolutions,
            segments=segments,
            events=events,
        )


def _slim_segment(segment: dict[str, Any]) -> dict[str, Any]:
    if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0):
        raise ValueError("a private pool")
    slim = {key: segment[key] for key in _SEGMENT_KEYS}
    slim["is_expandable"] = bool(segment.get("is_expandable", False))
    slim["blocks"] = [{key: block[key] for key in _BLOCK_KEYS} for block in segment["blocks"]]
    return slim


def _numbered(
    segments: tuple[dict[str, Any], ...], entries: list[dict[str, Any]]
) -> tuple[int, ...]:
    """Return the events of `Recording`, with blocks numbered instead of addressed.

    Raises:
        ValueError: several streams, or a release of something that was never allocated.
    """
    numbers = {block["address"]: number for number, block in enumerate(resident_blocks(segments))}
    count = len(numbers)
    streams = set()
    events = []
    for entry in entries:
        action = entry["action"]
        if action == "alloc":
            streams.add(entry["stream"])
            numbers[entry["addr"]] = count
            count += 1
            events.append(entry["size"])
        elif action == "free_requested":
            if entry["addr"] not in numbers:
                raise ValueError("a release of an unknown block")
            events.append(-numbers.pop(entry["addr"]) - 1)
        elif action not in _IGNORED_ACTIONS:
            raise ValueError(f"unknown action {action}")
    if len(streams) > 1:
        raise ValueError("several streams")
    return tuple(events)

"""A trace that is replayed while it goes on, for a program that bsfind does not run itself.

Each allocation is asked of the simulated allocator when the program makes it. So the program gets its
out-of-memory error where a GPU would raise it, and what it asks of its memory is answered by that allocator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.recording import replay
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.program import Program, Writer
from bsfind.simulation.trace.recorder import CALL, STREAM, Entry, Recorder
from bsfind.simulation.trace.simulated_torch import gpu_as_set
from bsfind.units import format_bytes

_KINDS = ("allocated", "reserved", "active", "requested")


class LiveMemory:
    """The memory of a simulated GPU that a program uses.

    Args:
        gpu: the GPU.
        allocator: its allocator.
        free_bytes: what the allocator could reserve if nothing limited it.
        total_bytes: memory of the GPU.
        on_first_use: called before the first allocation.

    Attributes:
        is_open: whether what happens counts: not what the tracer does to get ready.
        is_used: whether the program has used the GPU.
        calls: entries of all calls of operators so far.
    """

    def __init__(
        self,
        gpu: GpuSpec,
        allocator: CachingAllocator,
        *,
        free_bytes: int,
        total_bytes: int,
        on_first_use: Callable[[], object],
    ) -> None:
        self._gpu = gpu
        self._allocator = allocator
        self._free_bytes = free_bytes
        self._total_bytes = total_bytes
        self._on_first_use = on_first_use
        self._writer = Writer(gpu)
        self._written = Program()
        self._blocks: list[Block | None] = []
        self._events: list[int] = []
        self._requested_bytes = 0
        self.is_open = self.is_used = False
        self.calls: list[Entry] = []

    def use(self, *_: object, **__: object) -> None:
        """Use the GPU."""
        if not self.is_used:
            self.is_used = True
            self._on_first_use()

    def add(self, entry: Entry) -> None:
        """Replay what the program does.

        Args:
            entry: of a recorder.

        Raises:
            torch.OutOfMemoryError: it does not fit.
        """
        if not self.is_open and entry[0] != STREAM:
            return
        if entry[0] == CALL:
            self.calls.append(entry)
            self._writer.gpu = gpu_as_set(self._gpu)
        events: list[int] = []
        self._written.optional.clear()
        self._written.operators.clear()
        self._writer.write((entry,), events, self._written, is_trial=True)
        if not events:
            return
        self.use()
        first = len(self._blocks)
        try:
            streams = self._written.streams[first:]
            replay(self._allocator, self._blocks, events, self._written.optional, streams=streams)
        except SimulatedOutOfMemoryError as error:
            self._undo(events, first)
            raise torch.OutOfMemoryError(self._refusal(error)) from None
        self._events += events
        self._requested_bytes += sum(event for event in events if event > 0)

    def _undo(self, events: Sequence[int], first: int) -> None:
        """Free what an entry has allocated before it failed; its blocks, from `first` on, are none."""
        made = len(self._blocks) - first
        freed: set[int] = set()
        for event in events:
            if event >= 0:
                if not made:
                    break
                made -= 1
            else:
                freed.add(-event - 1)
        for number, block in enumerate(self._blocks[first:], first):
            if block is not None and number not in freed:
                self._allocator.free(block)
        self._blocks[first:] = [None] * sum(event >= 0 for event in events)

    def _refusal(self, error: SimulatedOutOfMemoryError) -> str:
        """Return the text of CUDACachingAllocator.cpp, torch 2.13."""
        used = self._total_bytes - self._free_bytes + error.reserved_bytes
        limit = self._allocator.limit_bytes
        allowed = "" if limit is None else f" {format_bytes(limit)} allowed;"
        unused = error.reserved_bytes - error.allocated_bytes
        return (
            f"CUDA out of memory. Tried to allocate {format_bytes(error.requested_bytes)}. GPU 0 has a "
            f"total capacity of {format_bytes(self._total_bytes)} of which "
            f"{format_bytes(self._total_bytes - used)} is free. Including non-PyTorch memory, this process "
            f"has {format_bytes(used)} memory in use.{allowed} Of the allocated memory "
            f"{format_bytes(error.allocated_bytes)} is allocated by PyTorch, and {format_bytes(unused)} is "
            "reserved by PyTorch but unallocated."
        )

    def answers(self) -> dict[str, Callable[..., Any]]:
        """Return what `torch.cuda` answers of this memory, by the names of its functions."""
        allocator = self._allocator
        reset = ("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached")
        return {
            "is_initialized": lambda: self.is_used,
            **dict.fromkeys(("init", "_lazy_init"), self.use),
            "memory_allocated": lambda *_, **__: allocator.allocated_bytes,
            "max_memory_allocated": lambda *_, **__: allocator.peak_allocated_bytes,
            "memory_reserved": lambda *_, **__: allocator.reserved_bytes,
            "max_memory_reserved": lambda *_, **__: allocator.peak_reserved_bytes,
            "mem_get_info": lambda *_, **__: (
                self._free_bytes - allocator.reserved_bytes,
                self._total_bytes,
            ),
            "memory_stats": lambda *_, **__: self._stats(),
            "_snapshot": lambda *_, **__: {"segments": [], "device_traces": [self._trace()]},
            "empty_cache": lambda: allocator.empty_cache(),
            **dict.fromkeys(reset, lambda *_, **__: allocator.reset_peaks()),
        }

    def _stats(self) -> dict[str, int]:
        allocator = self._allocator
        now = (
            allocator.allocated_bytes,
            allocator.reserved_bytes,
            *[allocator.allocated_bytes] * 2,
        )
        peaks = (
            *(allocator.peak_allocated_bytes, allocator.peak_reserved_bytes),
            *[allocator.peak_allocated_bytes] * 2,
        )
        return defaultdict(
            int,
            {
                **{f"{k}_bytes.all.current": n for k, n in zip(_KINDS, now, strict=True)},
                **{f"{k}_bytes.all.peak": n for k, n in zip(_KINDS, peaks, strict=True)},
                "requested_bytes.all.allocated": self._requested_bytes,
                "num_alloc_retries": allocator.num_alloc_retries,
                "num_ooms": allocator.num_ooms,
            },
        )

    def _trace(self) -> list[dict[str, Any]]:
        """Return the events as PyTorch's history has them, with numbers for the addresses."""
        number = 0
        entries = []
        streams = self._written.streams
        for event in self._events:
            stream = 0
            if event < 0:
                action, address = "free_requested", -event - 1
            else:
                action, address = "alloc", number
                stream = streams[number] if streams else 0
                number += 1
            size = max(0, event)
            entries.append({"action": action, "addr": address, "size": size, "stream": stream})
        return entries


class LiveRecorder(Recorder):
    """Has each entry replayed at once, and keeps none.

    Args:
        memory: replays it.
    """

    def __init__(self, memory: LiveMemory) -> None:
        super().__init__()
        self._memory = memory

    def _add(self, entry: Entry) -> None:
        self._memory.add(entry)

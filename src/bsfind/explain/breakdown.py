"""The sizes that an out-of-memory text names, and the breakdown of the GPU's memory that they give.

The texts of all these programs divide by 1024, whether they then write `GiB` or `GB` (PyTorch's MPS
allocator up to 2.7, PaddlePaddle, XLA, the kernel's `kB`): a `GB` is binary here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bsfind.units import GIB

# From its first digit, and of bounded length: a log may hold a line of nothing but digits.
_NUMBER = r"(?<!\d)(?<!\d,)\d[\d,]{0,40}(?:\.\d{0,40})?"
_UNIT = r"(?:[KMGTPE]i?B|[KMGT](?![A-Za-z])|bytes?|B(?![A-Za-z]))"
_SIZE = rf"(?P<size>{_NUMBER}\s*{_UNIT})"
_EXACT = r"(?:\s*\((?P<exact>\d+)\s*(?:bytes|B)\))?"
_NO_UNIT = r"\d[\d,]{0,40}(?![\d.,]{0,40}\s?[KMGT])"
_BARE = rf"(?P<size>{_NO_UNIT})"
_ANY = rf"(?P<size>{_NUMBER}\s*{_UNIT}|{_NO_UNIT})"

_FACTORS = "bkmgtpe"
_READ = re.compile(rf"({_NUMBER})\s*({_UNIT})?", re.IGNORECASE)
_UNBELIEVABLE = 1 << 50
"""Above a PiB: what the driver of Windows answers for "unknown" (17179869184.00 GiB)."""

_FREE_OF_TOTAL = r"free memory on device [^()]{0,20}\("  # vLLM: `(67.24/79.25 GiB)`

_PATTERNS: dict[str, tuple[str, ...]] = {
    "tried_bytes": (
        rf"(?:tried|trying|attempting|attempted) to allocate (?:more than )?{_SIZE}",
        rf"\brequested (?:size|memory|bytes of|amount of (?:GPU )?memory):?\s*\(?{_ANY}",
        rf"\brequested\s*: {_SIZE}",
        rf"(?:invalid buffer|buffer of) size:?\s*{_ANY}",
        r"(?:unable|cannot|can't|could not|failed)(?: to)? (?:\w+ ){0,2}[cm]?alloc(?:ate)? "
        rf"(?:async |request for )?{_SIZE}{_EXACT}",
        rf"(?:out of memory (?:allocating|to allocate)|attempting to reserve|unable to mmap) {_SIZE}",
        rf"allocating {_SIZE} on device",
        rf"(?:(?:cudaMalloc|alloc\w*) of size|allocate buffer:) {_BARE}",
        rf"(?:requires more (?:system |GPU )?|failed to allocate )memory \({_SIZE}\)",
        rf"allocation of {_SIZE}",
        rf"malloc\w*\({_BARE}\) failed",
    ),
    "total_bytes": (
        rf"total capaci?ty of {_SIZE}",
        rf"{_SIZE} total capaci?ty",
        rf"(?:device limit\s*: |total (?:device |GPU )?memory:?\s*){_SIZE}",
        rf"{_FREE_OF_TOTAL}{_NUMBER}/{_SIZE}",
    ),
    "free_bytes": (
        rf"of which {_SIZE} is free",
        rf"(?:free \(according to CUDA\):|available memory is(?: only)?) {_SIZE}",
        rf"{_SIZE} (?:is )?free\b(?! \(according)",
        rf"{_FREE_OF_TOTAL}(?P<size>{_NUMBER})/{_NUMBER}\s?(?P<unit>{_UNIT})",
        rf"than is available \({_SIZE}\)",
        rf"(?:available memory of|free memory:?)\s*{_ANY}",
    ),
    "allocated_bytes": (
        rf"(?:of the allocated memory,?|MPS allocated:|allocated so far:) {_SIZE}",
        rf"{_SIZE} (?:already\b|memory has been allocated)",
        rf"currently allocated\s*: {_SIZE}",
        rf"\bInUse:\s*{_BARE}",
    ),
    "reserved_bytes": (rf"{_SIZE} reserved in\b",),
    # `cached`: amount_cached - amount_allocated, c10/cuda/CUDACachingAllocator.cpp (torch 1.0-1.3)
    "reserved_unallocated_bytes": (rf"{_SIZE} is reserved by PyTorch\b", rf"{_SIZE} cached\b"),
    "private_pools_bytes": (rf"{_SIZE} allocated in private pools",),
    "allowed_bytes": (
        rf"{_SIZE} allowed\b",
        rf"(?:max allowed|limit set to): {_SIZE}",
        rf"\bLimit:\s*{_BARE}",
    ),
    "other_allocations_bytes": (rf"other allocations: {_SIZE}",),
    "this_process_bytes": (rf"this process has {_SIZE} memory in use", rf"anon-rss:{_SIZE}"),
}
_FIELDS = {
    name: tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)
    for name, patterns in _PATTERNS.items()
}
_PROCESS = re.compile(rf"\bProcess (\d+) has {_SIZE} memory in use", re.IGNORECASE)
_GPU = re.compile(r"\b[GN]PU (\d{1,4})(?=;| has a total)", re.IGNORECASE)
# Not the names of hosts (gpu017, gpu-3), counts (--gres=gpu:4) or sizes (GPU 24 GiB).
_DEVICE = re.compile(
    r"(?<!gres[=/])\b(?:(?:GPU|NPU|MUSA|device)(?:[:_= ]|: | #)|cuda:)"
    r"(\d{1,4})(?![\da-z-]|\.\d|\s?[KMGT]i?B|\s?%)",
    re.IGNORECASE,
)
_SHAPE = re.compile(r"tensor with shape\s*\[([\d, ]+)\] and type (\w+)")
_ITEM_SIZES = {"float": 4, "half": 2, "bfloat16": 2, "double": 8, "int32": 4, "int64": 8}


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that holds memory of the GPU, as the text names it."""

    pid: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The sizes of one text; None for what it does not say.

    Attributes:
        gpu_index: index of the GPU in the process.
        tried_bytes: the allocation that failed: of the caching allocator, a segment.
        total_bytes: the GPU's memory.
        free_bytes: memory free on the GPU at that moment.
        allocated_bytes: memory in tensors.
        reserved_bytes: memory that the caching allocator reserved, tensors included.
        reserved_unallocated_bytes: `reserved_bytes` less `allocated_bytes`.
        private_pools_bytes: part of `allocated_bytes` that belongs to CUDA graphs.
        allowed_bytes: the limit that was set for the process, or MPS's own.
        other_allocations_bytes: MPS: memory of the device outside PyTorch's allocator.
        this_process_bytes: all memory that the process holds on the GPU, the context included.
        processes: other processes that were named; in a container, this one may be among them.
        precision: half a unit of the last digit that was printed, of each size.
    """

    gpu_index: int | None = None
    tried_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    reserved_unallocated_bytes: int | None = None
    private_pools_bytes: int | None = None
    allowed_bytes: int | None = None
    other_allocations_bytes: int | None = None
    this_process_bytes: int | None = None
    processes: tuple[Process, ...] = ()
    precision: Mapping[str, int] = field(default_factory=dict, compare=False)

    def rounding(self, *names: str) -> int:
        """Return by how many bytes a sum of these sizes, or of all, may be wrong as each was rounded."""
        return sum(half for name, half in self.precision.items() if not names or name in names)

    @property
    def known(self) -> int:
        """How many sizes the text gives."""
        return sum(getattr(self, name) is not None for name in _FIELDS)


def read_size(text: str) -> tuple[int, int] | None:
    """Return a size as these texts write it, in bytes, and half a unit of its last printed digit.

    None if it is not a size, or beyond belief. Half a unit of `1.05 GiB` is 5 MiB and a bit.
    """
    match = _READ.match(text.strip())
    if match is None:
        return None
    factor: int = 1024 ** _FACTORS.index((match[2] or "b")[0].lower())
    number = match[1].rstrip(",")
    digits: int = 10 ** min(30, len(number.partition(".")[2]))
    if not re.search(r",\d{3}(,|\.|$)", number):
        number = number.replace(",", ".", 1)  # a decimal comma
    number = number.replace(",", "")[:40]
    if number.count(".") > 1:
        return None  # two numbers that a line break stood between
    size = float(number) * factor
    if size > _UNBELIEVABLE:
        return None
    return int(size), -(-factor // (2 * digits)) if factor > 1 else 0


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> tuple[int, int] | None:
    """Return the first size that one of the patterns finds, and its precision."""
    for match in filter(None, (pattern.search(text) for pattern in patterns)):
        groups = match.groupdict()
        size = read_size(groups.get("exact") or match["size"] + groups.get("unit", ""))
        if size is not None:
            return size
    return None


def _tensor_bytes(text: str) -> int | None:
    """Return the size of the tensor whose shape TensorFlow names."""
    match = _SHAPE.search(text)
    if match is None or match[2] not in _ITEM_SIZES:
        return None
    numbers = [int(number) for number in re.findall(r"\d{1,12}", match[1])[:12]]
    size = math.prod(numbers) * _ITEM_SIZES[match[2]]
    return size if size <= _UNBELIEVABLE else None


def read_figures(text: str) -> Figures:
    """Read the sizes of one message, whose lines have been joined."""
    read = {name: _first(patterns, text) for name, patterns in _FIELDS.items()}
    found = {name: size[0] if size else None for name, size in read.items()}
    precision = {name: size[1] for name, size in read.items() if size}
    if found["tried_bytes"] is None:
        found["tried_bytes"] = _tensor_bytes(text)
    _relate(found, sum(precision.values()))
    processes = []
    for match in _PROCESS.finditer(text):
        size = read_size(match["size"])
        if size is not None:
            processes.append(Process(pid=int(match[1][:18]), used_bytes=size[0]))
            precision[f"process {match[1]}"] = size[1]
    gpu = _GPU.search(text) or _DEVICE.search(text)
    return Figures(
        gpu_index=int(gpu[1]) if gpu else None,
        processes=tuple(dict.fromkeys(processes)),
        precision=precision,
        **found,
    )


def _relate(found: dict[str, int | None], rounding: int) -> None:
    """Add what is reserved to what is allocated, or tell them apart: a text gives one of the two.

    What is reserved holds what is allocated. A text in which it does not has lost a digit.
    """
    allocated, reserved = found["allocated_bytes"], found["reserved_bytes"]
    unallocated = found["reserved_unallocated_bytes"]
    if allocated is None:
        return
    if reserved is not None and unallocated is None:
        if reserved < allocated - rounding:
            found["reserved_bytes"] = None
        else:
            found["reserved_bytes"] = max(reserved, allocated)
            found["reserved_unallocated_bytes"] = max(reserved, allocated) - allocated
    elif reserved is None and unallocated is not None:
        found["reserved_bytes"] = allocated + unallocated


# ------------------------------------------------------------------------------- breakdown

_PARTS = (
    *("allocated_bytes", "cached_bytes", "outside_bytes", "others_bytes", "unattributed_bytes"),
    "free_bytes",
)
_CONTEXT_BYTES = GIB
"""What a process holds outside the caching allocator at most, usually: context, kernels, NCCL."""


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """The parts of the GPU's memory, which add up to its total as far as the text says.

    Attributes:
        total_bytes: the GPU's memory; for MPS, the limit of the process.
        allocated_bytes: memory in tensors.
        cached_bytes: memory that PyTorch's allocator reserves and that is in no tensor.
        outside_bytes: memory of this process outside the allocator: context, kernels, libraries, Metal.
        others_bytes: memory of other processes, and what the driver keeps.
        unattributed_bytes: memory in use of which the text does not say who holds it.
        free_bytes: memory free on the GPU.
        tried_bytes: the allocation that failed.
        overflow_bytes: by how much the figures exceed the total: then the parts are None.
        other_processes: the named processes other than this one.
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
        known = {name: getattr(self, name) for name in _PARTS}
        return {name: size for name, size in known.items() if size is not None}


def make_breakdown(figures: Figures) -> Breakdown:
    """Return the breakdown that the figures of one text give.

    Parts that add up to more than the GPU has are left out: memory that overflowed into the host's
    (Windows, ROCm and integrated GPUs), or figures of different moments.
    """
    breakdown = _mps(figures) if figures.other_allocations_bytes is not None else _card(figures)
    total, parts = breakdown.total_bytes, breakdown.parts
    if total is None:
        return breakdown
    excess = sum(parts.values()) - total
    if excess > min(figures.rounding(), max(parts.values(), default=0)):
        unknown: dict[str, Any] = dict.fromkeys(_PARTS)
        return replace(breakdown, overflow_bytes=excess, **unknown)
    if excess > 0:  # of rounding
        largest = max(parts, key=parts.__getitem__)
        smaller: dict[str, Any] = {largest: parts[largest] - excess}
        return replace(breakdown, **smaller)
    return breakdown


def _card(figures: Figures) -> Breakdown:
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
    return Breakdown(
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


def _mps(figures: Figures) -> Breakdown:
    """Return the breakdown of MPS's limit: this process, in and outside PyTorch's allocator.

    aten/src/ATen/mps/MPSAllocator.mm (torch 1.13-2.13): other allocations are `currentAllocatedSize` of
    the Metal device, which counts this process, less PyTorch's own.
    """
    limit, outside = figures.allowed_bytes, figures.other_allocations_bytes
    held = (figures.allocated_bytes or 0) + (outside or 0)
    return Breakdown(
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
    is_context = own.used_bytes - reserved <= 4 * _CONTEXT_BYTES
    if not is_context:
        if figures.total_bytes is None or figures.free_bytes is None:
            return None, figures.processes
        used = figures.total_bytes - figures.free_bytes
        named = sum(process.used_bytes for process in figures.processes)
        if named + reserved <= used + rounding:
            return None, figures.processes
    return own.used_bytes, tuple(p for p in figures.processes if p is not own)

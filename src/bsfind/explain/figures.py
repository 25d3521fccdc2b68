"""Every size that an out-of-memory text names, in bytes.

The texts of all these programs divide by 1024, whether they then write `GiB` or `GB` (PyTorch's MPS
allocator up to 2.7, PaddlePaddle, XLA, the kernel's `kB`): a `GB` is binary here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# From its first digit, and of bounded length: a log may hold a line of nothing but digits.
_NUMBER = r"(?<!\d)(?<!\d,)\d[\d,]{0,40}(?:\.\d{0,40})?"
_UNIT = r"(?:[KMGTPE]i?B|[KMGT](?![A-Za-z])|bytes?|B(?![A-Za-z]))"
_SIZE = rf"(?P<size>{_NUMBER}\s*{_UNIT})"
_EXACT = r"(?:\s*\((?P<exact>\d+)\s*(?:bytes|B)\))?"
_BARE = r"(?P<size>\d[\d,]{0,40})(?![\d.,]{0,40}\s?[KMGT])"

_FACTORS: Mapping[str, int] = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_READ = re.compile(rf"({_NUMBER})\s*({_UNIT})?", re.IGNORECASE)
_UNBELIEVABLE = 1 << 50
"""Above a PiB: what the driver of Windows answers for "unknown" (17179869184.00 GiB)."""

_FOR = r"(?:async |request for )?"  # NCCL, XLA
_FREE_OF_TOTAL = r"free memory on device [^()]{0,20}\("  # vLLM: `(67.24/79.25 GiB)`

_TRIED = (
    rf"tried to allocate (?:more than )?{_SIZE}",
    rf"requested size:?\s*{_SIZE}",
    rf"\brequested\s*: {_SIZE}",
    rf"requested amount of (?:GPU )?memory \({_SIZE}\)",
    rf"requested bytes of {_BARE}",
    rf"invalid buffer size:?\s*{_SIZE}",
    rf"(?:unable|cannot|can't|could not|failed) to (?:\w+ ){{0,2}}[cm]?alloc(?:ate)? {_FOR}{_SIZE}{_EXACT}",
    rf"(?:cannot|can't|could not) allocate {_SIZE}{_EXACT}",
    rf"(?:trying|attempting|attempted) to allocate {_SIZE}",
    rf"out of memory (?:allocating|to allocate) {_SIZE}",
    rf"allocating {_SIZE} on device",
    rf"buffer of size:?\s*{_SIZE}",
    rf"buffer of size:?\s*{_BARE}",
    rf"(?:cudaMalloc|alloc\w*) of size {_BARE}",
    rf"attempting to reserve {_SIZE}",
    rf"requested memory:?\s*{_BARE}",
    rf"requires more (?:system |GPU )?memory \({_SIZE}\)",
    rf"failed to allocate memory \({_SIZE}\)",
    rf"allocation of {_SIZE}",
    rf"malloc\w*\({_BARE}\) failed",
    rf"unable to mmap {_SIZE}",
    rf"allocate buffer: {_BARE}",
)
_TOTAL = (
    rf"total capaci?ty of {_SIZE}",
    rf"{_SIZE} total capaci?ty",
    rf"device limit\s*: {_SIZE}",
    rf"total (?:device |GPU )?memory:?\s*{_SIZE}",
    rf"{_FREE_OF_TOTAL}{_NUMBER}/{_SIZE}",
)
_FREE = (
    rf"of which {_SIZE} is free",
    rf"free \(according to CUDA\): {_SIZE}",
    rf"{_SIZE} (?:is )?free\b(?! \(according)",
    rf"available memory is (?:only )?{_SIZE}",
    rf"{_FREE_OF_TOTAL}(?P<size>{_NUMBER})/{_NUMBER}\s?(?P<unit>{_UNIT})",
    rf"than is available \({_SIZE}\)",
    rf"available memory of {_BARE}",
    rf"free memory:?\s*{_SIZE}",
    rf"free memory:?\s*{_BARE}",
)
_ALLOCATED = (
    rf"of the allocated memory,? {_SIZE}",
    rf"{_SIZE} already\b",
    rf"MPS allocated: {_SIZE}",
    rf"currently allocated\s*: {_SIZE}",
    rf"{_SIZE} memory has been allocated",
    rf"allocated so far: {_SIZE}",
    rf"\bInUse:\s*{_BARE}",
)
_RESERVED = (rf"{_SIZE} reserved in\b",)
# `cached`: amount_cached - amount_allocated, c10/cuda/CUDACachingAllocator.cpp (torch 1.0-1.3)
_UNALLOCATED = (rf"{_SIZE} is reserved by PyTorch\b", rf"{_SIZE} cached\b")
_PRIVATE = (rf"{_SIZE} allocated in private pools",)
_ALLOWED = (
    rf"{_SIZE} allowed\b",
    rf"max allowed: {_SIZE}",
    rf"limit set to: {_SIZE}",
    rf"\bLimit:\s*{_BARE}",
)
_OTHER = (rf"other allocations: {_SIZE}",)
_THIS = (rf"this process has {_SIZE} memory in use", rf"anon-rss:{_SIZE}")


def _compile(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


_FIELDS = {
    "tried_bytes": _compile(_TRIED),
    "total_bytes": _compile(_TOTAL),
    "free_bytes": _compile(_FREE),
    "allocated_bytes": _compile(_ALLOCATED),
    "reserved_bytes": _compile(_RESERVED),
    "reserved_unallocated_bytes": _compile(_UNALLOCATED),
    "private_pools_bytes": _compile(_PRIVATE),
    "allowed_bytes": _compile(_ALLOWED),
    "other_allocations_bytes": _compile(_OTHER),
    "this_process_bytes": _compile(_THIS),
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
    """A process that the text names as a user of the card."""

    pid: int
    used_bytes: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The sizes of one text; None for what it does not say.

    Attributes:
        gpu_index: the GPU, as the process counts them.
        tried_bytes: the allocation that failed: of the caching allocator, a segment.
        total_bytes: the card's memory.
        free_bytes: free on the card at that moment.
        allocated_bytes: in tensors.
        reserved_bytes: taken by the caching allocator, tensors included.
        reserved_unallocated_bytes: `reserved_bytes` less `allocated_bytes`.
        private_pools_bytes: part of `allocated_bytes` that belongs to CUDA graphs.
        allowed_bytes: the limit that was set for the process, or MPS's own.
        other_allocations_bytes: MPS: memory of the device outside PyTorch's allocator.
        this_process_bytes: everything the process holds on the card, the context included.
        processes: the others that were named; in a container, the process itself may be among them.
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


def read_size(text: str) -> int | None:
    """Return a size as these texts write it in bytes; None if it is none, or beyond belief."""
    match = _READ.match(text.strip())
    if match is None:
        return None
    unit = (match[2] or "").lower()
    power = 0 if unit.startswith("b") else _FACTORS[unit[:1]]
    number = match[1].rstrip(",")
    if not re.search(r",\d{3}(,|\.|$)", number):
        number = number.replace(",", ".", 1)  # a decimal comma
    number = number.replace(",", "")[:40]
    if number.count(".") > 1:
        return None  # two numbers that a line break stood between
    size = float(number) * 1024**power
    return int(size) if size <= _UNBELIEVABLE else None


def _half_a_unit(text: str) -> int:
    """Return half a unit of the last printed digit in bytes, rounded up: 5 MiB and a bit for `1.05 GiB`."""
    match = _READ.match(text.strip())
    if match is None or (match[2] or "b").lower().startswith("b"):
        return 0
    digits = min(30, len(match[1].partition(".")[2]))
    factor: int = 1 << (10 * _FACTORS[match[2][:1].lower()])
    unit: int = 10**digits
    return -(-factor // (2 * unit))


def _first(patterns: tuple[re.Pattern[str], ...], text: str) -> tuple[int, int] | None:
    """Return the first size that one of the patterns finds, and its precision."""
    for pattern in patterns:
        match = pattern.search(text)
        if match is not None:
            groups = match.groupdict()
            printed = groups.get("exact") or match["size"] + groups.get("unit", "")
            size = read_size(printed)
            if size is not None:
                return size, _half_a_unit(printed)
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
    found = {name: size[0] if size is not None else None for name, size in read.items()}
    precision = {name: size[1] for name, size in read.items() if size is not None}
    if found["tried_bytes"] is None:
        found["tried_bytes"] = _tensor_bytes(text)
    _relate(found, sum(precision.values()))
    processes = []
    for match in _PROCESS.finditer(text):
        size = read_size(match["size"])
        if size is not None:
            processes.append(Process(pid=int(match[1][:18]), used_bytes=size))
            precision[f"process {match[1]}"] = _half_a_unit(match["size"])
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

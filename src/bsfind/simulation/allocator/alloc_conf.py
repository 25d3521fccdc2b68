"""The options of PyTorch's caching allocator, as its environment variables set them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from bsfind.simulation import torch_releases
from bsfind.units import MIB

TieRule = Literal["address", "block", "segment"]

# kMinBlockSize of c10/core/AllocatorConfig.h: sizes are multiples of it.
MIN_BLOCK = 512
# Divisions are set per power of two of the size, from below 2 MiB to 32 GiB and above.
_NUM_DIVISION_INTERVALS = 16
_DEFAULT_LARGE_SEGMENT_MB = 20

# Options that change the speed or host memory, but not the memory of the device.
_WITHOUT_EFFECT = frozenset(
    {
        "graph_capture_record_stream_reuse",  # the simulated allocator captures no graphs
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
    }
)


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """The configuration of a caching allocator; the defaults are PyTorch's.

    Models c10/core/AllocatorConfig.{h,cpp} and c10/cuda/CUDAAllocatorConfig.{h,cpp} of torch 2.13.

    Attributes:
        torch_version: the release whose allocator is modelled, such as `2.13` or `2.11.0+cu130`.
        expandable_segments: grow one segment per stream instead of a new one per allocation.
        large_segment_size_mb: size of the segments that serve requests over 1 and below 10 MiB.
        max_split_size_mb: larger blocks are not split; None: no limit.
        max_non_split_rounding_mb: how much larger than the request an unsplit block may be; None:
            the size of a large segment.
        roundup_power2_divisions: into how many steps each power of two is divided when sizes are
            rounded up, for sizes below 2 MiB, below 4 MiB, …, of 32 GiB and above; 0: multiples of
            512 bytes.
        garbage_collection_threshold: fraction of the memory limit above which old cached segments
            are freed; 0: never. It has no effect without a limit, as in PyTorch.
        unsupported: options that are set and not modelled, so that results may be wrong.
    """

    torch_version: str = "2.13"
    expandable_segments: bool = False
    large_segment_size_mb: int = _DEFAULT_LARGE_SEGMENT_MB
    max_split_size_mb: int | None = None
    max_non_split_rounding_mb: int | None = None
    roundup_power2_divisions: tuple[int, ...] = (0,) * _NUM_DIVISION_INTERVALS
    garbage_collection_threshold: float = 0.0
    unsupported: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._release()
        if len(self.roundup_power2_divisions) != _NUM_DIVISION_INTERVALS:
            raise ValueError(f"`roundup_power2_divisions` needs {_NUM_DIVISION_INTERVALS} values")
        if any(value < 0 or value & (value - 1) for value in self.roundup_power2_divisions):
            raise ValueError("`roundup_power2_divisions` must be powers of 2, or 0")
        if self.large_segment_size_mb <= 10:
            raise ValueError("`large_segment_size_mb` must be more than 10")
        for name in ("max_split_size_mb", "max_non_split_rounding_mb"):
            value = getattr(self, name)
            if value is not None and value < self.large_segment_size_mb:
                raise ValueError(f"`{name}` must be at least {self.large_segment_size_mb}")
        if not 0 <= self.garbage_collection_threshold < 1:
            raise ValueError("`garbage_collection_threshold` must be less than 1")

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], torch_version: str
    ) -> AllocatorSettings:
        """Read the settings that PyTorch would read from its environment variables.

        `PYTORCH_CUDA_ALLOC_CONF` hides `PYTORCH_ALLOC_CONF` (from torch 2.9 on) if it is set, even to
        an empty text: observed with torch 2.12 and 2.13.

        Args:
            environment: environment variables, such as `os.environ`.
            torch_version: `torch.__version__` of the PyTorch that reads them.

        Raises:
            ValueError: a value is not one that PyTorch accepts; the text names the option.
        """
        text = environment.get("PYTORCH_CUDA_ALLOC_CONF")
        if (
            text is None
            and cls(torch_version=torch_version)._release() >= torch_releases.PLAIN_ALLOC_CONF
        ):
            text = environment.get("PYTORCH_ALLOC_CONF")

        known: dict[str, Any] = {}
        unsupported = []
        for key, value in _options(text or ""):
            if key in _READERS:
                try:
                    known[key] = _READERS[key](value)
                except ValueError as error:
                    raise ValueError(f"allocator option `{key}:{value}` is not valid") from error
            elif not _is_harmless(key, value):
                unsupported.append(key)
        if "PYTORCH_NO_CUDA_MEMORY_CACHING" in environment:  # whatever its value
            unsupported.append("PYTORCH_NO_CUDA_MEMORY_CACHING")
        return cls(torch_version=torch_version, unsupported=tuple(unsupported), **known)

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from PyTorch's defaults, as JSON types, by name."""
        return {
            option.name: list(value) if isinstance(value, tuple) else value
            for option in fields(self)
            if option.name != "torch_version"
            and (value := getattr(self, option.name)) != option.default
        }

    @property
    def tie_rule(self) -> TieRule:
        """Which of several free blocks of one size serves a request.

        torch ≤ 2.11 takes the one with the lowest address (`BlockComparatorSize` in
        c10/cuda/CUDACachingAllocator.cpp); 2.12 the one that was created first
        (`BlockComparatorRegistrationCounter`; a split creates a new block for the front); 2.13 the
        one whose segment was created first, then the lowest address
        (`BlockComparatorSizeCounterAddress`).
        """
        release = self._release()
        if release >= torch_releases.TIES_BY_SEGMENT:
            return "segment"
        return "block" if release >= torch_releases.TIES_BY_BLOCK else "address"

    @property
    def large_segment_bytes(self) -> int:
        """Size of the segments that serve requests over 1 and below 10 MiB."""
        return self.large_segment_size_mb * MIB

    @property
    def max_split_bytes(self) -> int:
        """Blocks of this size and more are not split; `sys.maxsize` without a limit."""
        return sys.maxsize if self.max_split_size_mb is None else self.max_split_size_mb * MIB

    @property
    def max_non_split_rounding_bytes(self) -> int:
        """How much larger than the request a block that is not split may be."""
        if self.max_non_split_rounding_mb is None:
            return self.large_segment_bytes
        return self.max_non_split_rounding_mb * MIB

    def round_size(self, nbytes: int) -> int:
        """Return the size of the block that a request for `nbytes` > 0 needs.

        Models `round_size` and `roundup_power2_next_division` of
        c10/cuda/CUDACachingAllocator.cpp, torch 2.13.
        """
        exponent = nbytes.bit_length() - 1
        interval = min(max(exponent - 20, 0), _NUM_DIVISION_INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        if divisions > 1 and nbytes > MIN_BLOCK * divisions:
            step = (1 << exponent) // divisions
            return -(-nbytes // step) * step
        return (nbytes + MIN_BLOCK - 1) & -MIN_BLOCK

    def _release(self) -> tuple[int, int]:
        match = re.match(r"(\d+)\.(\d+)", self.torch_version)
        if match is None:
            raise ValueError(f"`{self.torch_version}` is not a version of PyTorch")
        return int(match[1]), int(match[2])


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Split `key:value,key:[a:1,b:2]`, ignoring white space."""
    for match in re.finditer(r"([^:,\[\]]+)(?::(\[[^\]]*\]?|[^,]*))?", re.sub(r"\s", "", text)):
        yield match[1], match[2] or ""


def _is_harmless(key: str, value: str) -> bool:
    if key.startswith("pinned_") or key in _WITHOUT_EFFECT:
        return True
    harmless_values = {
        "backend": "native",
        "per_process_memory_fraction": "1",
        "throw_on_cudamalloc_oom": "False",
    }
    return re.sub(r"\.0*$", "", value) == harmless_values.get(key)


def _read_flag(value: str) -> bool:
    if value not in ("True", "False"):
        raise ValueError(value)
    return value == "True"


def _read_threshold(value: str) -> float:
    if not 0 < float(value) < 1:
        raise ValueError(value)
    return float(value)


def _read_divisions(value: str) -> tuple[int, ...]:
    """Read `4`, or `[256:1,512:2,>:8]`: divisions for sizes from so many MiB on."""
    if not value.startswith("["):
        if int(value) < 1:
            raise ValueError(value)
        return (int(value),) * _NUM_DIVISION_INTERVALS
    divisions = [0] * _NUM_DIVISION_INTERVALS
    last = -1
    for pair in value.strip("[]").split(","):
        boundary, _, text = pair.partition(":")
        number = int(text)
        if boundary == ">":
            first = max(last, 0) + 1
            divisions[first:] = [number] * (_NUM_DIVISION_INTERVALS - first)
            continue
        if int(boundary) < 1 or int(boundary) & (int(boundary) - 1):
            raise ValueError(value)
        interval = min(int(boundary).bit_length() - 1, _NUM_DIVISION_INTERVALS - 1)
        if last < 0:
            divisions[:interval] = [number] * interval
        divisions[interval] = number
        last = interval
    return tuple(divisions)


_READERS: dict[str, Callable[[str], object]] = {
    "expandable_segments": _read_flag,
    "large_segment_size_mb": int,
    "max_split_size_mb": int,
    "max_non_split_rounding_mb": int,
    "roundup_power2_divisions": _read_divisions,
    "garbage_collection_threshold": _read_threshold,
}

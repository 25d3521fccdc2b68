"""The rows of a report: precisions, and changes of the settings that are searched one after the other.

The latter are the lengths of `--seq-len`, and what guides to out-of-memory errors advise: `--compare`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bsfind.records import DeviceInfo
from bsfind.settings import REMEDIES, Settings

_EXPANDABLE_SEGMENTS = "expandable-segments"

_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""c10/core/AllocatorConfig.cpp reads the first of these that is set, torch 2.9-2.13; before, only the
second was known (c10/cuda/CUDAAllocatorConfig.cpp)."""


def lengths_of(settings: Settings) -> tuple[int | None, ...]:
    """Return the lengths to search at, the longest first; (None,) where there are not several.

    The answer is that of the longest: it holds for shorter sequences too.
    """
    seq_lens = settings.seq_lens
    return tuple(sorted(seq_lens, reverse=True)) if len(seq_lens) > 1 else (None,)


def at_length(settings: Settings, seq_len: int | None) -> Settings:
    """Return the settings of the search at one of several lengths; None: as they are."""
    if seq_len is None:
        return settings
    workload = dataclasses.replace(settings.workload, seq_len=seq_len)
    return dataclasses.replace(settings, workload=workload, seq_lens=(seq_len,), seq_len=seq_len)


def row_name(precision: str, seq_len: int | None) -> str:
    """Return the name of a row: the precision, and which of several lengths it is at."""
    return precision if seq_len is None else f"{precision} at {seq_len:,} tokens"


def remedied(settings: Settings, remedy: str, precision: str) -> Settings:
    """Return the settings of one more search, with a remedy, in one precision."""
    workload = dataclasses.replace(settings.workload, **REMEDIES[remedy])
    return dataclasses.replace(
        settings, workload=workload, precisions=(precision,), compare=(), remedy=remedy
    )


def why_unsupported(remedy: str, *, simulated: bool) -> str | None:
    """Return why a device cannot show what a remedy gains; None if it can."""
    if simulated and remedy == "compile":
        return "what torch.compile fuses cannot be predicted: it takes a GPU"
    return None


def variables_of(remedy: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that a remedy sets; {} for one that sets none."""
    return with_expandable_segments(environ) if remedy == _EXPANDABLE_SEGMENTS else {}


def with_expandable_segments(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that turn expandable segments on and keep other options.

    Both names are set: a torch that knows the newer one reads it first, others do not see it.
    """
    either = next((environ[name] for name in _VARIABLES if environ.get(name)), "")
    return {name: _with_expandable_segments(environ.get(name) or either) for name in _VARIABLES}


def _with_expandable_segments(options: str) -> str:
    others = [
        option
        for option in options.split(",")
        if option.strip() and not option.strip().startswith("expandable_segments")
    ]
    return ",".join([*others, "expandable_segments:True"])


def precisions_of(settings: Settings, device: DeviceInfo) -> list[str]:
    """Return the precisions to search on a device: `amp` resolved, none twice."""
    amp = "amp-bf16" if device.supports_bf16 else "amp-fp16"
    return list(dict.fromkeys(amp if p == "amp" else p for p in settings.precisions))


def unsupported(precision: str, device: DeviceInfo) -> str | None:
    """Return why a device cannot run a precision; None if it can."""
    if precision == "tf32" and not device.supports_tf32:
        return f"{device.name} has no TF32 (it came with compute capability 8.0)"
    if precision in ("bf16", "amp-bf16") and not device.supports_bf16:
        return f"{device.name} has no bfloat16 in hardware (it came with compute capability 8.0)"
    return None

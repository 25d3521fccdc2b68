"""What the driver says of the GPUs and of the processes on them. Needs no torch and no CUDA context.

NVML counts the machine's GPUs, CUDA those that CUDA_VISIBLE_DEVICES leaves: the two are matched by
UUID. Every answer may be missing (no driver, no permission, WSL, MIG, containers): it is None then,
and no exception is raised.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsfind.records import GpuProcess

# NVML answers 2**64 - 1 where it does not know (WSL), and nvidia-ml-py turns that into None.
_UNKNOWN_BYTES = 1 << 60

_SAME_MEMORY = 0.1
"""Relative difference of two sizes that can be those of one device: NVML counts some per cent more than
CUDA, and the largest slice (MIG) that is not the whole card has half of its memory."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of this machine."""

    index: int
    uuid: str
    name: str
    compute_capability: str | None
    total_bytes: int | None
    free_bytes: int | None
    processes: tuple[GpuProcess, ...] = ()


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """Yield the initialised `pynvml` module, or None where there is no NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the driver's library can be missing, broken, or of another version
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _ask(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except Exception:  # NVMLError_NotSupported, NVMLError_NoPermission, …
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver, or None without one."""
    with _nvml() as nvml:
        version = _ask(nvml.nvmlSystemGetDriverVersion) if nvml else None
    return None if version is None else _text(version)


def list_gpus() -> list[Gpu]:
    """Return this machine's NVIDIA GPUs, all of them, in NVML's order; [] without a driver."""
    with _nvml() as nvml:
        if nvml is None:
            return []
        handles = [
            _ask(nvml.nvmlDeviceGetHandleByIndex, index)
            for index in range(_ask(nvml.nvmlDeviceGetCount) or 0)
        ]
        return [_gpu(nvml, i, handle) for i, handle in enumerate(handles) if handle is not None]


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        index=index,
        uuid=_text(_ask(nvml.nvmlDeviceGetUUID, handle) or ""),
        name=_text(_ask(nvml.nvmlDeviceGetName, handle) or "unknown"),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        total_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        processes=tuple(_processes(nvml, handle)),
    )


def free_bytes(uuid: str, total_bytes: int) -> int | None:
    """Return the free memory of a GPU, bytes; asking makes no CUDA context.

    Args:
        uuid: its UUID by `torch.cuda.get_device_properties` or by NVML.
        total_bytes: its total memory by CUDA.
    """
    with _nvml() as nvml:
        handle = _handle(nvml, uuid, total_bytes)
        memory = None if handle is None else _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    return None if memory is None else int(memory.free)


def _handle(nvml: Any, uuid: str, total_bytes: int) -> Any:
    """Return the handle of a GPU or of a slice of one (MIG); None if there is none.

    CUDA may give the UUID of the whole card for a slice, whose free memory and processes differ from the
    card's: so a handle counts only if its memory is that of the device.
    """
    if nvml is None:
        return None
    names = [uuid] if uuid.startswith(("GPU-", "MIG-")) else [f"MIG-{uuid}", f"GPU-{uuid}"]
    for name in names:
        handle = _ask(nvml.nvmlDeviceGetHandleByUUID, name)
        memory = None if handle is None else _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        if memory is not None and abs(memory.total - total_bytes) <= _SAME_MEMORY * total_bytes:
            return handle
    return None


def processes(uuid: str, total_bytes: int) -> tuple[GpuProcess, ...]:
    """Return the processes that hold memory of a GPU, this one included.

    Args:
        uuid: its UUID by `torch.cuda.get_device_properties` or by NVML.
        total_bytes: its total memory by CUDA.
    """
    with _nvml() as nvml:
        handle = _handle(nvml, uuid, total_bytes)
        return () if handle is None else tuple(_processes(nvml, handle))


def other_processes(uuid: str, total_bytes: int) -> tuple[GpuProcess, ...]:
    """Return the processes that hold memory of a GPU, except this one (see `processes`)."""
    return tuple(p for p in processes(uuid, total_bytes) if p.pid != os.getpid())


def _processes(nvml: Any, handle: Any) -> Iterator[GpuProcess]:
    found = {}
    for function in (
        nvml.nvmlDeviceGetComputeRunningProcesses,
        nvml.nvmlDeviceGetGraphicsRunningProcesses,
    ):
        for process in _ask(function, handle) or ():
            found[process.pid] = process.usedGpuMemory
    for pid, used in sorted(found.items()):
        known = used is not None and 0 <= used < _UNKNOWN_BYTES
        yield GpuProcess(pid=pid, name=_process_name(nvml, pid), used_bytes=used if known else None)


def _process_name(nvml: Any, pid: int) -> str | None:
    with contextlib.suppress(OSError):
        return _text(Path(f"/proc/{pid}/comm").read_bytes()).strip()
    name = _ask(nvml.nvmlSystemGetProcessName, pid)
    return None if name is None else Path(_text(name)).name

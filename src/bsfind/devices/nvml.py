"""The driver's view of the GPUs: who else uses them. Needs no torch and no CUDA context.

NVML counts the machine's GPUs, CUDA those that CUDA_VISIBLE_DEVICES leaves: the two are matched by
UUID. Every answer may be missing (no driver, no permission, WSL, MIG, containers): None, never an
exception.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsfind.records import GpuProcess

__all__ = ["Gpu", "driver_version", "free_bytes", "list_gpus", "other_processes"]

# NVML answers 2**64 - 1 where it does not know (WSL), and nvidia-ml-py turns that into None.
_UNKNOWN_BYTES = 1 << 60


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


def free_bytes(uuid: str) -> int | None:
    """Return the free memory of a GPU, bytes; asking makes no CUDA context.

    Args:
        uuid: as `torch.cuda.get_device_properties(...).uuid` or NVML writes it.
    """
    with _nvml() as nvml:
        handle = _handle(nvml, uuid)
        memory = None if handle is None else _ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    return None if memory is None else int(memory.free)


def _handle(nvml: Any, uuid: str) -> Any:
    uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    return _ask(nvml.nvmlDeviceGetHandleByUUID, uuid) if nvml else None


def other_processes(uuid: str) -> tuple[GpuProcess, ...]:
    """Return the processes that hold memory of a GPU, except this one.

    Args:
        uuid: as `torch.cuda.get_device_properties(...).uuid` or NVML writes it.
    """
    with _nvml() as nvml:
        handle = _handle(nvml, uuid)
        if handle is None:
            return ()
        return tuple(process for process in _processes(nvml, handle) if process.pid != os.getpid())


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
        return Path(f"/proc/{pid}/comm").read_text().strip()
    name = _ask(nvml.nvmlSystemGetProcessName, pid)
    return None if name is None else Path(_text(name)).name

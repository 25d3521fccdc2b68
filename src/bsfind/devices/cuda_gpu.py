"""The GPU of this machine that was asked for, what identifies it, and how much memory is left on it.

Only `memory_left` needs a CUDA context.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from bsfind.devices import nvml
from bsfind.errors import NoDeviceError, NoGpuError
from bsfind.failures.memory_watch import MemoryLeft
from bsfind.settings import DeviceChoice
from bsfind.units import MIB


def cuda_device(choice: DeviceChoice) -> torch.device:
    """Return the device that was asked for.

    Raises:
        NoDeviceError: torch sees no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise NoGpuError(
            "no usable GPU was found",
            detail=_why_no_gpu(),
            hint="predict for one that is not here: `--gpu rtx-4090` (`bsfind gpus` lists them), or "
            "`--device sim`; `bsfind env` shows what the driver and torch see",
        )
    _, _, index_text = choice.device.partition(":")
    index = int(index_text or 0)
    if index >= count:
        raise NoDeviceError(
            f"there is no `{choice.device}`, torch sees {count} GPU{'s' if count > 1 else ''}",
            hint="`bsfind gpus` lists them; CUDA_VISIBLE_DEVICES renumbers them",
        )
    return torch.device("cuda", index)


def identify(choice: DeviceChoice) -> str:
    """Return the `identity` of the device that was asked for.

    Raises:
        NoDeviceError: torch sees no such device, or it has failed.
    """
    device = cuda_device(choice)
    try:
        properties = torch.cuda.get_device_properties(device)
    except RuntimeError as error:
        raise unusable(device, error) from error
    return identity(device, properties)


def unusable(device: torch.device, error: RuntimeError) -> NoDeviceError:
    """Return the error that reports a device that exists and cannot be opened."""
    return NoDeviceError(
        f"`{device}` cannot be used: {str(error).splitlines()[0]}",
        hint="`nvidia-smi` shows who holds it",
    )


def identity(
    device: torch.device, properties: Any, environment: Mapping[str, str] = os.environ
) -> str:
    """Return the UUID of a GPU, or of a slice of one (MIG), as NVML takes it.

    CUDA may give the UUID of the whole card for a slice; a process that uses a slice names it in
    CUDA_VISIBLE_DEVICES (MIG user guide, "CUDA Device Enumeration").
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    index = device.index or 0
    if index < len(visible) and visible[index].strip().startswith("MIG-"):
        return visible[index].strip()
    return str(getattr(properties, "uuid", "")) or f"{properties.name}-{index}"


def _why_no_gpu() -> str:
    """Return the likeliest reason why torch sees no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"This torch ({torch.__version__}) is a build without CUDA."
    gpus = nvml.list_gpus()
    if not gpus:
        return "The NVIDIA driver shows no GPU."
    return (
        f"The driver shows {gpus[0].name}, but torch {torch.__version__} cannot use it: "
        "CUDA_VISIBLE_DEVICES may hide it, or the driver may be too old for this torch."
    )


_OWN_GROWTH = 512 * MIB
"""What libraries and kernels may take outside the allocator after the device was opened, bytes; used
where the driver does not tell how much memory this process has (containers, WSL)."""


def memory_left(
    device: torch.device, uuid: str, free_bytes: int, context_bytes: int | None
) -> MemoryLeft | None:
    """Return how much of a device's memory PyTorch can use now; None if its context is lost.

    Args:
        device: the device, which this process has opened.
        uuid: the `identity` of the device.
        free_bytes: memory that was free once it was opened.
        context_bytes: memory of the CUDA context; None if it is not known.
    """
    try:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
    except RuntimeError:
        return None
    if free + reserved >= free_bytes:
        return MemoryLeft(available_bytes=free + reserved)
    processes = nvml.processes(uuid, total)
    own = next((p.used_bytes for p in processes if p.pid == os.getpid()), None)
    if own is not None and context_bytes is not None:
        others_before = total - free_bytes - context_bytes
        taken = (total - free - own) - others_before
    else:
        taken = free_bytes - free - reserved
        taken = taken if taken > _OWN_GROWTH else 0
    return MemoryLeft(
        available_bytes=free_bytes - max(0, taken),
        others=tuple(p for p in processes if p.pid != os.getpid()),
    )

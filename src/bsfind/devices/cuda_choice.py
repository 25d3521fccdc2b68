"""Which of the machine's GPUs is meant, and what identifies it. Makes no CUDA context."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from bsfind.devices import nvml
from bsfind.errors import NoDeviceError, NoGpuError
from bsfind.settings import DeviceChoice


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
    """Return the error that reports a device which is there and cannot be opened."""
    return NoDeviceError(
        f"`{device}` cannot be used: {str(error).splitlines()[0]}",
        hint="`nvidia-smi` shows who holds it",
    )


def identity(
    device: torch.device, properties: Any, environment: Mapping[str, str] = os.environ
) -> str:
    """Return the UUID of a GPU, or of a slice of one (MIG), as NVML takes it.

    What CUDA says of a slice can be the UUID of the whole card; a process that uses a slice names it in
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

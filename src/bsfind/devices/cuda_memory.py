"""What a CUDA device's memory does behind the allocator's back: neighbours, and host memory on loan."""

from __future__ import annotations

import os

import torch

from bsfind.devices import nvml
from bsfind.failures.memory_watch import MemoryLeft
from bsfind.records import Trial
from bsfind.units import MIB, format_bytes

_OWN_GROWTH = 512 * MIB
"""What libraries and kernels may take outside the pool after the device was opened, where the driver
does not tell how much this process has (containers, WSL)."""


def memory_left(
    device: torch.device, uuid: str, free_bytes: int, context_bytes: int | None
) -> MemoryLeft | None:
    """Return what PyTorch can use of a device by now; None if its context is lost.

    Args:
        device: opened by this process.
        uuid: of it.
        free_bytes: free when it was opened.
        context_bytes: what opening it took; None if it is not known.
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


def spilled_trial(batch_size: int, steps: int, peak_bytes: int, free_bytes: int) -> Trial | None:
    """Return the trial of a size that ran with host memory on loan; None if it ran on the device.

    Where the card is full, drivers for Windows and WSL lend host memory instead of failing ("CUDA -
    Sysmem Fallback Policy", since 535): it runs, many times slower. bsfind caps the allocator, but the
    user's code can lift the cap.

    Args:
        batch_size: that ran.
        steps: that ran.
        peak_bytes: the most that the allocator had reserved.
        free_bytes: free when the device was opened.
    """
    if peak_bytes <= free_bytes:
        return None
    return Trial(
        batch_size=batch_size,
        status="oom",
        steps=steps,
        message=f"spilled into host memory: {format_bytes(peak_bytes)} reserved of "
        f"{format_bytes(free_bytes)} that were free on the GPU",
    )

"""Measures what a process holds of a GPU outside PyTorch's allocator: context, cuBLAS and cuDNN, NCCL.

    python -m bsfind.devices.cuda_context

writes what it found, a JSON object on each line, and ends. A process of its own, because the memory of a
context is not given back before its process ends. Lines are written one by one: where a library ends the
process, those before it are there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from bsfind.devices import nvml
from bsfind.devices.cuda_gpu import cuda_device, identity
from bsfind.errors import NoDeviceError
from bsfind.settings import DeviceChoice
from bsfind.simulation.gpus.catalogue import CatalogueGpu
from bsfind.simulation.gpus.context_memory import context_bytes, loads_lazily

__all__ = ["OutsideMemory", "use_context", "use_libraries", "use_nccl"]


class OutsideMemory:
    """Memory of this process outside PyTorch's allocator.

    Must be made before the process has a CUDA context.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)  # makes no context
        self._device = device
        self._uuid = identity(device, properties)
        self._total_bytes = properties.total_memory
        self._free_before = nvml.free_bytes(self._uuid, self._total_bytes)

    def now(self) -> int | None:
        """Return the bytes; None if the driver tells neither this process's memory nor what was free before.

        Where the driver does not tell this process's memory (containers, WSL), it is what is less free than
        before: other processes change it.
        """
        torch.cuda.synchronize(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        processes = nvml.processes(self._uuid, self._total_bytes)
        own = next((p.used_bytes for p in processes if p.pid == os.getpid()), None)
        if own is not None:
            return own - reserved
        free = nvml.free_bytes(self._uuid, self._total_bytes)
        if self._free_before is None or free is None:
            return None
        return self._free_before - free - reserved


def use_context(device: torch.device) -> None:
    """Make the context, and run one kernel."""
    torch.zeros((), device=device)


def use_libraries(device: torch.device) -> None:
    """Train a step with products of matrices and a convolution, in fp32 and in fp16."""
    for dtype in (torch.float32, torch.float16):
        layer = torch.nn.Conv2d(16, 16, 3, padding=1).to(device, dtype)
        images = torch.ones(4, 16, 32, 32, device=device, dtype=dtype)
        features = layer(images).flatten(1)
        weight = torch.ones(16 * 32 * 32, 64, device=device, dtype=dtype, requires_grad=True)
        (features @ weight).sum().backward()


def use_nccl(device: torch.device) -> None:
    """Reduce in a process group of one rank.

    Raises:
        RuntimeError: this torch has no NCCL, or it fails.
    """
    if not _has_nccl():
        raise RuntimeError("this torch has no NCCL")
    from torch import distributed

    store: Any = distributed.HashStore()  # type: ignore[attr-defined]
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1)
    distributed.all_reduce(torch.ones(1, device=device))
    torch.cuda.synchronize(device)


_STAGES: tuple[tuple[str, Callable[[torch.device], None]], ...] = (
    ("context", use_context),
    ("libraries", use_libraries),
    ("nccl", use_nccl),
)


def _card(device: torch.device) -> dict[str, Any]:
    """Return what torch and the driver say of a GPU, the versions, and what bsfind takes its context for."""
    properties = torch.cuda.get_device_properties(device)
    is_lazy = loads_lazily(os.environ, torch.version.cuda)
    cudnn: Any = torch.backends.cudnn
    nccl: Any = torch.cuda.nccl
    gpu = CatalogueGpu(
        key=properties.name,
        name=properties.name,
        total_bytes=properties.total_memory,
        compute_capability=f"{properties.major}.{properties.minor}",
        sm_count=properties.multi_processor_count,
        max_threads_per_sm=getattr(properties, "max_threads_per_multi_processor", None),
    )
    return {
        "gpu": gpu.name,
        "total_bytes": gpu.total_bytes,
        "compute_capability": gpu.compute_capability,
        "sm_count": gpu.sm_count,
        "modelled_bytes": context_bytes(gpu, lazy=is_lazy),
        "module_loading": "lazy" if is_lazy else "eager",
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": cudnn.version(),
        "nccl": ".".join(map(str, nccl.version())) if _has_nccl() else None,
    }


def _has_nccl() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_nccl_available()


def _leave_group() -> None:
    """End the process group, if there is one."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _write(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure, and write what was found."""
    _write({"torch": torch.__version__, "driver": nvml.driver_version()})
    try:
        device = cuda_device(DeviceChoice())
        outside = OutsideMemory(device)
        _write(_card(device))
    except (NoDeviceError, RuntimeError) as error:
        detail = getattr(error, "detail", None)
        _write({"missing": f"{error}" + (f". {detail}" if detail else "")})
        return
    for name, use in _STAGES:
        try:
            use(device)
            _write({f"{name}_bytes": outside.now()})
        except RuntimeError as error:
            _write({f"{name}_error": str(error).strip().partition("\n")[0]})
    _leave_group()


if __name__ == "__main__":
    main()

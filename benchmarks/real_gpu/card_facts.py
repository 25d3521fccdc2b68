"""The GPU that is measured: what torch and the driver say of it, and what is installed beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsfind.simulation.gpus.catalogue import CatalogueGpu

if TYPE_CHECKING:
    from bsfind.simulation.kernels.call import GpuSpec

__all__ = ["Card", "has_real_gpu", "identify", "installed"]

_PACKAGES = (
    *("torch", "torchvision", "timm", "transformers", "lightning", "peft", "diffusers", "numpy", "triton"),
    *("typer", "rich", "nvidia-ml-py", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis"),
    *("jsonschema", "cloudpickle"),
)  # fmt: skip

_VARIABLES = (
    *("CUDA_MODULE_LOADING", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"),
    *("TORCH_CUDNN_SDPA_PREFERRED", "TORCH_CUDNN_SDPA_DEPRIORITIZED", "CUBLAS_WORKSPACE_CONFIG"),
    *("CUBLASLT_WORKSPACE_SIZE", "TORCH_CUDNN_V8_API_DISABLED"),
)

_COUNT = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
sys.exit(bool(cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value))
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU, as rules and predictions take it.

    Attributes:
        name: as torch has it.
        uuid: of the device.
        is_fake: whether the library of tests/fakegpu is in the place of CUDA.
        total_bytes: `total_memory` by torch.
        free_bytes: what a process finds free, by CUDA, before the first measurement.
        capability: compute capability.
        sm_count: number of multiprocessors.
        max_threads_per_sm: largest number of resident threads of each.
        torch_version: (major, minor).
    """

    name: str
    uuid: str
    is_fake: bool
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    sm_count: int
    max_threads_per_sm: int
    torch_version: tuple[int, int]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Card:
        """Return the card of `dataclasses.asdict`, or of `identify`, after JSON made lists of tuples."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})

    @property
    def spec(self) -> GpuSpec:
        """The GPU as the rules of kernels take it, with PyTorch's default settings."""
        from bsfind.simulation.kernels.call import GpuSpec

        return GpuSpec(
            capability=self.capability,
            sm_count=self.sm_count,
            max_threads_per_sm=self.max_threads_per_sm,
            torch_version=self.torch_version,
        )

    @property
    def catalogue_entry(self) -> CatalogueGpu:
        """The GPU as an entry of the catalogue, which need not have it."""
        return CatalogueGpu(
            key=self.name,
            name=self.name,
            total_bytes=self.total_bytes,
            compute_capability=".".join(map(str, self.capability)),
            sm_count=self.sm_count,
            max_threads_per_sm=self.max_threads_per_sm,
        )


def has_real_gpu() -> bool:
    """Tell whether the driver of this machine has a GPU, without torch and without a CUDA context here."""
    done = subprocess.run([sys.executable, "-c", _COUNT], check=False, capture_output=True)
    return done.returncode == 0


def identify() -> dict[str, Any]:
    """Return the fields of `Card`, and the versions of what runs on it. Makes a CUDA context."""
    import torch

    from bsfind.devices import nvml
    from bsfind.devices.cuda_gpu import identity

    properties = torch.cuda.get_device_properties(0)
    uuid, total = identity(torch.device("cuda", 0), properties), properties.total_memory
    major, minor, *_ = torch.__version__.split(".")
    return {
        "name": properties.name,
        "uuid": uuid,
        "is_fake": "libfakecuda" in Path("/proc/self/maps").read_text(),
        "total_bytes": total,
        "free_bytes": torch.cuda.mem_get_info()[0],
        "capability": [properties.major, properties.minor],
        "sm_count": properties.multi_processor_count,
        "max_threads_per_sm": properties.max_threads_per_multi_processor,
        "torch_version": [int(major), int(minor)],
        "versions": {
            "driver": nvml.driver_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "other_processes": [str(process) for process in nvml.other_processes(uuid, total)],
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def installed() -> dict[str, str | None]:
    """Return the version of each package that a step may need; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found

"""The GPU that a prediction is for: its memory, and what PyTorch and the rules of kernels see of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bsfind.devices.base import nccl_memory
from bsfind.devices.modelled_torch import modelled_torch
from bsfind.errors import UsageError
from bsfind.records import DeviceInfo
from bsfind.settings import DeviceChoice
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.gpus.catalogue import find_gpu
from bsfind.simulation.gpus.context_memory import context_bytes, loads_lazily
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.workload.precision import precision_plan

if TYPE_CHECKING:
    from bsfind.simulation.trace.masquerade.torch_cuda import SimulatedGpu


class ModelledGpu:
    """A GPU of the catalogue, which the machine does not need to have.

    `--memory-limit` is what the allocator may reserve, as on a real GPU. Where it is more than the GPU
    has, a GPU with that much memory is simulated.

    Args:
        choice: which GPU, and how much of its memory may be used.

    Attributes:
        card: the entry of the catalogue.
        torch: the release of PyTorch that runs on it.
        settings: options of the allocator, from the environment.
        free_bytes: what a CUDA context and NCCL leave of the memory.
        limit_bytes: what the allocator may reserve by `--memory-limit`; None: all that is free.

    Raises:
        UsageError: the allocator's options in the environment are not valid, or nothing is left for it.
    """

    def __init__(self, choice: DeviceChoice) -> None:
        if choice.gpu is None:
            raise ValueError("no GPU to simulate is named")
        self.card = find_gpu(choice.gpu)
        self.torch = modelled_torch(choice.torch_version)
        self.settings = _allocator_settings(self.torch.version)
        self._is_context_given = choice.context_memory_bytes is not None
        if choice.context_memory_bytes is not None:
            self._context_bytes = choice.context_memory_bytes
        else:
            # Counted as if the step, which is not known yet, called all libraries.
            lazy = loads_lazily(os.environ, self.torch.cuda)
            self._context_bytes = context_bytes(self.card, lazy=lazy)
        self._nccl_bytes, self._nccl_source = nccl_memory(choice)
        self.limit_bytes = choice.memory_limit_bytes
        self._outside_bytes = self._context_bytes + (self._nccl_bytes or 0)
        left = (self.card.total_bytes or 0) - self._outside_bytes
        self.free_bytes = max(left, self.limit_bytes or 0)
        if self.free_bytes <= 0:
            raise UsageError(
                f"{'the CUDA context leaves' if not self._nccl_bytes else 'the CUDA context and NCCL leave'} "
                f"nothing of {self.card.name}",
                hint="`--context-memory` and `--nccl-memory` say what they take there",
            )

    def describe(self) -> DeviceInfo:
        """Return the GPU as torch would show it without another process on it."""
        capability = self.card.capability or (0, 0)
        return DeviceInfo(
            kind="simulated",
            name=self.card.name,
            index=0,
            compute_capability=self.card.compute_capability,
            total_bytes=self.free_bytes + self._outside_bytes,
            free_bytes=self.free_bytes,
            capacity_bytes=self.free_bytes if self.limit_bytes is None else self.limit_bytes,
            context_bytes=self._context_bytes,
            context_source="given" if self._is_context_given else "modelled",
            nccl_bytes=self._nccl_bytes,
            nccl_source=self._nccl_source,
            supports_bf16=capability >= (8, 0),
            supports_tf32=capability >= (8, 0),
            torch_version=self.torch.version,
            traced_by=self.torch.traced_by,
            cuda_version=self.torch.cuda,
        )

    @property
    def properties(self) -> SimulatedGpu:
        """What `torch.cuda.get_device_properties` returns to the user's code."""
        from bsfind.simulation.trace.masquerade.torch_cuda import SimulatedGpu

        major, minor = self.card.capability or (0, 0)
        return SimulatedGpu(
            name=self.card.name,
            total_memory=self.free_bytes + self._outside_bytes,
            major=major,
            minor=minor,
            multi_processor_count=self.card.sm_count,
            max_threads_per_multi_processor=self.card.max_threads_per_sm,
        )

    def spec(self, precision: str) -> GpuSpec:
        """Return the GPU as rules of kernels have it, for steps in a precision."""
        card = self.card
        if card.capability is None or card.sm_count is None or card.max_threads_per_sm is None:
            raise ValueError(f"{card.key} cannot be simulated")
        tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE") != "0" and card.capability >= (8, 0)
        return GpuSpec(
            capability=card.capability,
            sm_count=card.sm_count,
            max_threads_per_sm=card.max_threads_per_sm,
            torch_version=self.torch.release,
            cudnn_version=self.torch.cudnn,
            tf32_convolutions=tf32,
            tf32_matmul=tf32 and precision_plan(precision).matmul_tf32,
        )

    def allocator(self, limit_bytes: int | None) -> CachingAllocator:
        """Return a new allocator with the GPU's memory.

        Args:
            limit_bytes: what it may reserve; None: all that is free.
        """
        return CachingAllocator(
            DeviceMemory(self.free_bytes),
            self.settings,
            limit_bytes=limit_bytes,
            total_bytes=self.free_bytes + self._outside_bytes,
        )


def _allocator_settings(torch_version: str) -> AllocatorSettings:
    try:
        return AllocatorSettings.from_environment(os.environ, torch_version=torch_version)
    except ValueError as error:
        raise UsageError(
            f"PyTorch would refuse the environment: {error}",
            hint="PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF sets it",
        ) from error

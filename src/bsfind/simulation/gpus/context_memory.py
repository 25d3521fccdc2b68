"""GPU memory that a process holds outside PyTorch's allocator: the CUDA context and what it loads.

No counter of PyTorch shows it, it differs between drivers, and near the limit it matters more than
the rounding of the allocator. It is modelled as:

    context_bytes = stacks of the resident threads  +  the context itself  +  code of the kernels

*Stacks*: a context reserves the local memory of all threads that the GPU can hold at once:
multiprocessors x threads of each x the stack of a thread (`cudaLimitStackSize`, 1 KiB by default;
CUDA C++ Programming Guide, "Device Memory Accesses", local memory). This part grows with the size of
the card.

*Kernels*: with lazy loading (CUDA 11.7 and later; `_lazy_init` of torch/cuda/__init__.py sets
CUDA_MODULE_LOADING=LAZY if it is not set, torch 1.13-2.13) only kernels that run are loaded. With
eager loading all kernels of libtorch_cuda, cuBLAS and cuDNN are loaded.

The constants are fitted to public out-of-memory messages (the memory of the process minus what
PyTorch had reserved), in MiB: T4 128 and 198; RTX 3090 and 4090 297 … 554, mostly 300 … 390;
A100 422, 488, 502; L40S, RTX A6000 and 6000 Ada 317 … 433; V100 and RTX 5090 307 … 499. There is no
published value for an H100 alone. With eager loading, 1600 MiB for an RTX 3090 under CUDA 11.3 agrees
best with a public table of the batch sizes that it trained with. The estimates are good to about a
third of their value and deliberately high: too much costs a sample, too little an out-of-memory error.

Not counted, because they depend on how a job is launched: NCCL (0.5 to 3 GiB per process), other
processes, a desktop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bsfind.simulation.gpus.catalogue import CatalogueGpu
from bsfind.units import KIB, MIB

_STACK_BYTES = 1 * KIB
_CONTEXT_BYTES = 110 * MIB
_LAZY_BYTES = 140 * MIB  # cuBLAS and cuDNN
_EAGER_BYTES = 1360 * MIB
_PAGE = 2 * MIB
# The number of threads of large cards, for a GPU whose number is not known.
_THREADS = 128 * 1536


def loads_lazily(environment: Mapping[str, str], cuda_version: str | None) -> bool:
    """Return whether kernels are loaded when they first run.

    Args:
        environment: environment variables, such as `os.environ`.
        cuda_version: the CUDA version that torch was built for, such as `12.8`; None for a build
            without CUDA, which stands for a build with a later version than 11.7.
    """
    match = re.match(r"(\d+)\.(\d+)", cuda_version or "")
    if match is not None and (int(match[1]), int(match[2])) < (11, 7):
        return False
    return environment.get("CUDA_MODULE_LOADING", "LAZY").upper() != "EAGER"


def context_bytes(gpu: CatalogueGpu, *, lazy: bool = True) -> int:
    """Return the bytes that a training process holds of a GPU outside PyTorch's allocator.

    Args:
        gpu: the GPU.
        lazy: whether kernels are loaded when they first run (see `loads_lazily`).
    """
    threads = _THREADS
    if gpu.sm_count is not None and gpu.max_threads_per_sm is not None:
        threads = gpu.sm_count * gpu.max_threads_per_sm
    kernels = _LAZY_BYTES if lazy else _EAGER_BYTES
    size = threads * _STACK_BYTES + _CONTEXT_BYTES + kernels
    return -(-size // _PAGE) * _PAGE

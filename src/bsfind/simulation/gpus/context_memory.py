"""GPU memory that a process holds outside PyTorch's allocator: the CUDA context and what it loads.

No counter of PyTorch shows it, no two drivers agree on it, and near the limit it decides more than
any rounding of the allocator. What is modelled here:

    context_bytes = stacks of the resident threads  +  the context itself  +  code of the kernels

*Stacks*: a context keeps the local memory of as many threads as the GPU can hold at once:
multiprocessors x threads of each x the stack of a thread (`cudaLimitStackSize`, 1 KiB by default;
CUDA C++ Programming Guide, "Device Memory Accesses", local memory). It is the part that makes large
cards cost more than small ones.

*Kernels*: with lazy loading (CUDA 11.7 and later, which PyTorch turns on: `_lazy_init` of
torch/cuda/__init__.py sets CUDA_MODULE_LOADING=LAZY where it is not set, torch 1.13-2.13) only those
that run are loaded. With eager loading all kernels of libtorch_cuda, cuBLAS and cuDNN are.

The constants are fitted to what public out-of-memory messages tell (the memory of the process minus
what PyTorch had reserved), in MiB: T4 128 and 198; RTX 3090 and 4090 297 … 554, mostly 300 … 390;
A100 422, 488, 502; L40S, RTX A6000 and 6000 Ada 317 … 433; V100 and RTX 5090 307 … 499. Nobody has
published a clean figure for an H100 alone; with eager loading, an RTX 3090 under CUDA 11.3 agrees best
with a public table of the batch sizes that it trained with if it holds 1600 MiB. Eager or not, the
figure is good to about a third of itself: the constants lean to the upper half of the readings, since
too much costs a sample and too little costs the run.

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
_LAZY_BYTES = {"cublas": 60 * MIB, "cudnn": 80 * MIB}
_EAGER_BYTES = 1360 * MIB
_PAGE = 2 * MIB
# Where a catalogue or a size tells nothing else: what large cards have.
_THREADS = 128 * 1536


def loads_lazily(environment: Mapping[str, str], cuda_version: str | None) -> bool:
    """Tell whether kernels are loaded when they first run.

    Args:
        environment: `os.environ`, or the part of it that matters.
        cuda_version: that torch was built for, like `12.8`; None for a build without CUDA, whose
            CUDA sibling is meant: it has a later one than 11.7.
    """
    match = re.match(r"(\d+)\.(\d+)", cuda_version or "")
    if match is not None and (int(match[1]), int(match[2])) < (11, 7):
        return False
    return environment.get("CUDA_MODULE_LOADING", "LAZY").upper() != "EAGER"


def context_bytes(
    gpu: CatalogueGpu, *, lazy: bool = True, libraries: frozenset[str] = frozenset(_LAZY_BYTES)
) -> int:
    """Return what a training process holds of a GPU outside PyTorch's allocator, bytes.

    Args:
        gpu: the GPU.
        lazy: see `loads_lazily`.
        libraries: those of `cublas` and `cudnn` that a step calls; where the step is not known, both.
    """
    threads = _THREADS
    if gpu.sm_count is not None and gpu.max_threads_per_sm is not None:
        threads = gpu.sm_count * gpu.max_threads_per_sm
    kernels = sum(_LAZY_BYTES[name] for name in libraries) if lazy else _EAGER_BYTES
    size = threads * _STACK_BYTES + _CONTEXT_BYTES + kernels
    return -(-size // _PAGE) * _PAGE

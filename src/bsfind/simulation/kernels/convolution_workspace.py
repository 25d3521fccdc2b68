"""The workspace of a convolution: asked of cuDNN where this machine has it, else by fitted trees.

cuDNN answers for its own version, which is that of the torch of this environment where torch is a CUDA build
(see `cudnn_library`). The trees of `cudnn_engines` stand for cuDNN 9.20; they also answer what cuDNN refuses.
"""

from __future__ import annotations

import os
from functools import lru_cache

from bsfind.records import ALL_ASKED
from bsfind.simulation.gpus.cudnn_device import device_json
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cudnn_engines import CUDNN_VERSION
from bsfind.simulation.kernels.cudnn_library import CudnnLibrary, find_library, may_be_asked
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem
from bsfind.simulation.kernels.cudnn_process import FIRST_VERSION, Question
from bsfind.simulation.kernels.cudnn_workspace import fitted_workspace_bytes
from bsfind.simulation.torch_releases import cuda_and_cudnn, cudnn_release

_TIMED = 10
"""Plans that PyTorch times, by default (`torch.backends.cudnn.benchmark_limit`)."""

_answered: set[str] = set()
"""Who has answered in this process: `cudnn`, `trees`."""


@lru_cache(maxsize=65536)
def workspace_bytes(problem: ConvolutionProblem, gpu: GpuSpec) -> int:
    """Return the workspace of the engine that PyTorch runs, in bytes; 0 for none.

    That is the first that cuDNN ranks. With `torch.backends.cudnn.benchmark`, PyTorch runs the fastest of
    those that it times, which only a GPU can tell: if cuDNN can be asked, the largest of their workspaces
    counts.

    Args:
        problem: the call.
        gpu: where it runs, and the settings of PyTorch.
    """
    if problem.is_empty:
        return 0
    sizes = _asked(problem, gpu, most=_TIMED if gpu.cudnn_benchmark else 1)
    _answered.add("trees" if sizes is None else "cudnn")
    return max(sizes) if sizes else fitted_workspace_bytes(problem, gpu)


def asks_cudnn(gpu: GpuSpec) -> bool:
    """Tell whether there is a cuDNN that answers for a GPU; it starts the process that asks."""
    library = _library(gpu)
    return library is not None and library.can_answer()


def workspaces_source(gpu: GpuSpec) -> str | None:
    """Return what the workspaces of this process rest on, in words; None if there were none.

    Args:
        gpu: its release of torch names the package of cuDNN, where that is not there.
    """
    if not _answered:
        return None
    trees = f"fitted trees of cuDNN {cudnn_release(CUDNN_VERSION)}"
    libraries = [library for library in _libraries.values() if library is not None]
    failures = [library.failure for library in libraries if library.failure]
    versions = [library.version for library in libraries if library.version]
    because = f" (the library cannot be asked: {failures[0]})" if failures else ""
    if "cudnn" not in _answered:
        return trees + (because or _how_to_ask(gpu))
    asked = f"cuDNN {cudnn_release(versions[0])}{ALL_ASKED}" if versions else f"cuDNN{ALL_ASKED}"
    return asked if _answered == {"cudnn"} else f"{asked}, in part {trees}{because}"


def _how_to_ask(gpu: GpuSpec) -> str:
    """Return which package lets cuDNN be asked; nothing where it cannot be, or is not to be."""
    if not may_be_asked() or find_library() is not None:
        return ""
    cuda, cudnn = cuda_and_cudnn(gpu.torch_version)
    if cudnn < FIRST_VERSION:
        return ""
    package = f"nvidia-cudnn-cu{cuda.partition('.')[0]}=={cudnn_release(cudnn)}.*"
    return f" (`pip install '{package}'` lets bsfind ask cuDNN itself)"


_libraries: dict[tuple[tuple[int, int], int, int], CudnnLibrary | None] = {}


def _library(gpu: GpuSpec) -> CudnnLibrary | None:
    """Return who asks cuDNN for a GPU; None if there is no library of its version that plans without one."""
    key = (gpu.capability, gpu.sm_count, gpu.max_threads_per_sm)
    if key not in _libraries:
        path = None if _uses_old_interface() else find_library()
        _libraries[key] = CudnnLibrary(path, device_json(*key)) if path else None
    library = _libraries[key]
    if library is None or gpu.cudnn_version is None:
        return library
    library.can_answer()  # which tells the version
    is_its_own = cudnn_release(library.version or 0) == cudnn_release(gpu.cudnn_version)
    return library if is_its_own else None


def _asked(problem: ConvolutionProblem, gpu: GpuSpec, *, most: int) -> list[int] | None:
    library = _library(gpu)
    if library is None:
        return None
    # Before Ampere there is no TF32, so that PyTorch's permission rules nothing out.
    tf32 = gpu.tf32_convolutions or gpu.capability < (8, 0)
    return library.sizes(
        Question(
            kind=problem.kind,
            dtype=str(problem.dtype).removeprefix("torch."),
            channels_last=problem.channels_last,
            batch=problem.batch,
            channels=problem.channels,
            size=list(problem.size),
            out_channels=problem.out_channels,
            out_size=list(problem.out_size),
            kernel=list(problem.kernel),
            stride=list(problem.stride),
            padding=list(problem.padding),
            dilation=list(problem.dilation),
            groups=problem.groups,
            tf32=tf32,
            deterministic=gpu.cudnn_deterministic,
            mode_b=_is_set("TORCH_CUDNN_USE_HEURISTIC_MODE_B"),
            most=most,
        )
    )


def _uses_old_interface() -> bool:
    """Return whether PyTorch plans by the interface of cuDNN 7, which insists on a GPU."""
    return _is_set("TORCH_CUDNN_V8_API_DISABLED")


def _is_set(variable: str) -> bool:
    """Return what `c10::utils::check_env` does of a variable that is 0, 1 or not there."""
    return os.environ.get(variable) == "1"

"""Warnings for versions and settings of torch that predictions are known not to follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from bsfind.errors import UntraceableError
from bsfind.parallel import Parallel
from bsfind.records import ReportWarning
from bsfind.simulation.gpus.accuracy import measured
from bsfind.simulation.kernels.cudnn_engines import CUDNN_VERSION
from bsfind.simulation.torch_releases import (
    CUDA_13,
    NEWEST,
    cuda_and_cudnn,
    cudnn_release,
    release_of,
)

if TYPE_CHECKING:
    from bsfind.devices.modelled_torch import ModelledTorch
    from bsfind.simulation.gpus.catalogue import CatalogueGpu
    from bsfind.simulation.trace.program import StepOperators


_SHARDING_SINCE = (2, 9)
"""The first version of torch whose FSDP2 is known to be traced; 2.7 is known not to be."""


def check_sharding(parallel: Parallel, torch_version: str) -> None:
    """Make sure that FSDP2 can be traced, where it is asked for.

    Args:
        parallel: how several GPUs share the training.
        torch_version: `torch.__version__`.

    Raises:
        UntraceableError: it cannot with this version.
    """
    if parallel.shards and release_of(torch_version) < _SHARDING_SINCE:
        raise UntraceableError(
            f"FSDP2 of torch {torch_version} cannot be traced: predictions with it need torch "
            f"{_text(_SHARDING_SINCE)} or newer",
            hint="`--parallel ddp` can be predicted; on a GPU, `--nproc-per-node` and `--world-size` measure",
        )


def version_warnings(
    modelled: ModelledTorch, asks_cudnn: Callable[[], bool] = lambda: False
) -> list[ReportWarning]:
    """Return a warning for a torch that the error bound is not for, with what is known of it.

    Args:
        modelled: the release that is predicted.
        asks_cudnn: tells whether the library of this environment is asked for workspaces.
    """
    if measured().is_for(modelled.version) and modelled.traced_by is None:
        return []
    release = modelled.release
    if release > NEWEST:
        known = f"a newer version than {_text(NEWEST)} is taken to be like it"
    elif not (differs := list(_not_modelled(modelled, asks_cudnn))):
        known = "what is known to differ is modelled"
    else:
        known = f"known to differ and not modelled: {', '.join(differs)}"
    if modelled.traced_by is None:
        compared = measured().compared_release(modelled.version)
        subject = f"the error bound of predictions is for torch {measured().torch}, and this is"
    else:
        compared = measured().compared_traces(modelled.traced_by).get(modelled.version)
        subject = (
            f"torch {modelled.traced_by} traces the step with its own Python code and operators, and its "
            f"allocations are predicted for"
        )
    return [
        ReportWarning(
            code="torch_version",
            message=f"{subject} {_text(release)}: {compared or 'not compared'}; {known}",
            hint="keep more headroom, or measure with `--device cuda`",
        )
    ]


def _not_modelled(modelled: ModelledTorch, asks_cudnn: Callable[[], bool]) -> Iterator[str]:
    """Yield what a torch (its wheel on PyPI) does otherwise than the rules say."""
    release = modelled.release
    _, cudnn = cuda_and_cudnn(release)
    if cudnn != CUDNN_VERSION and not asks_cudnn():
        taken = cudnn_release(CUDNN_VERSION)
        yield f"workspaces of convolutions (those of cuDNN {taken} are taken)"
    if (2, 6) < release < CUDA_13:  # seen with 2.9, not with 2.6 and 2.11
        yield "3-D convolutions in half precision (taken to run in cuDNN)"
    if modelled.traced_by is not None and release < CUDA_13:  # 2.9, traced by 2.13; not 2.11
        yield (
            "the operators that `cosine_similarity`, the gradients of `atan2`, and those of layer norm's "
            "weights in half precision consist of"
        )


_OLDEST_CAPABILITIES = (((13, 0), (7, 5)), ((12, 8), (7, 0)))
"""The lowest compute capability that PyTorch's builds for a version of CUDA, or a newer one, have kernels of.

CUDA 13.0 compiles for no GPU before Turing (its release notes, "Deprecated Architectures"); PyTorch's builds
for 12.8 and 12.9 left out Maxwell and Pascal before that (pytorch/pytorch issue 157517). Older builds have
kernels for all GPUs of the catalogue.
"""


def architecture_warnings(gpu: CatalogueGpu, modelled: ModelledTorch) -> list[ReportWarning]:
    """Return a warning for a GPU that this torch has no kernels for.

    Args:
        gpu: the GPU.
        modelled: the release that is predicted; a build without CUDA stands for PyPI's wheel.
    """
    release = modelled.release
    cuda = release_of(modelled.cuda or cuda_and_cudnn(release)[0])
    needed = next((least for since, least in _OLDEST_CAPABILITIES if cuda >= since), None)
    if needed is None or gpu.capability is None or gpu.capability >= needed:
        return []
    return [
        ReportWarning(
            code="gpu_architecture",
            message=f"torch {_text(release)} for CUDA {_text(cuda)} has no kernels for {gpu.name}: it needs "
            f"compute capability {_text(needed)} or newer, and this is "
            f"{gpu.compute_capability}. The step is predicted as if it had",
            hint="install a build of PyTorch for an older CUDA, such as 12.6; its memory differs a little",
        )
    ]


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def setting_warnings(
    operators: StepOperators, asks_cudnn: Callable[[], bool]
) -> list[ReportWarning]:
    """Return warnings for settings of torch that a prediction does not follow.

    Call it after a step: modules change settings when they are imported or built, or in `forward`.

    Args:
        operators: the operators of the step.
        asks_cudnn: tells whether cuDNN is asked for workspaces, which then follow more of them.
    """
    found = []
    cudnn = torch.backends.cudnn
    deterministic = torch.are_deterministic_algorithms_enabled()
    if operators.convolutions and cudnn.benchmark:
        taken = (
            "The prediction counts the largest workspace of the ten kernels that it times for each: but "
            "for fragmentation, later steps take at most what is predicted. The first step, which tries the "
            "kernels with as much memory as there is, can have a higher peak"
            if asks_cudnn()
            else "The prediction and its error bound are for the kernels that it takes without; workspaces "
            "can be larger, and the first step, which tries the kernels, can have a higher peak"
        )
        found.append(
            ReportWarning(
                code="cudnn_benchmark",
                message="`torch.backends.cudnn.benchmark` is on: PyTorch times the kernels of each "
                f"convolution and takes the fastest, which only a GPU can tell. {taken}",
                hint="measure with `--device cuda`, or keep more headroom",
            )
        )
    if operators.convolutions and (cudnn.deterministic or deterministic) and not asks_cudnn():
        found.append(
            ReportWarning(
                code="cudnn_deterministic",
                message="deterministic convolutions are on: PyTorch leaves out kernels of cuDNN that are "
                "not deterministic. The prediction and its error bound are for the kernels that it takes "
                "otherwise; workspaces can be larger or smaller",
                hint="measure with `--device cuda`, or keep more headroom",
            )
        )
    if deterministic and not torch.is_deterministic_algorithms_warn_only_enabled():
        found.append(
            ReportWarning(
                code="deterministic_algorithms",
                message="`torch.use_deterministic_algorithms(True)`: on a GPU, PyTorch raises an error "
                "where an operator has no deterministic kernel, which a prediction does not see",
                hint="`warn_only=True` turns the error into a warning",
            )
        )
    return found

"""Which release of PyTorch a prediction is for: the one that is installed, or one that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bsfind.errors import UsageError
from bsfind.parallel import Parallel
from bsfind.simulation.gpus.accuracy import measured
from bsfind.simulation.torch_releases import cuda_and_cudnn, release_of


@dataclass(frozen=True, kw_only=True)
class ModelledTorch:
    """The release of PyTorch whose allocator and kernels are modelled.

    Attributes:
        version: `torch.__version__` of the one that is installed, or the release: `2.9`.
        cuda: CUDA of its build; None: it has none.
        traced_by: the version that is installed, and traces, where that is another release.
        cudnn: the version of cuDNN that may be asked; None: the one that there is.
    """

    version: str
    cuda: str | None
    traced_by: str | None = None
    cudnn: int | None = None

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        return release_of(self.version)

    def check(self, parallel: Parallel) -> None:
        """Make sure that training on several GPUs is not traced by another release.

        Args:
            parallel: how several GPUs share the training.

        Raises:
            UsageError: it would be.
        """
        if self.traced_by is not None and parallel.is_used:
            raise UsageError(
                f"`--parallel` cannot be combined with `--torch-version {self.version}`: how DDP and FSDP "
                f"train is code of the torch that is installed ({self.traced_by})",
                hint=f"predict with torch {self.version} installed {_BESIDE.format(self.version)}",
            )


_BESIDE = "beside bsfind: `pip install bsfind 'torch=={}.*'` in another environment"


def installed_torch() -> ModelledTorch:
    """Return the release that is installed."""
    return ModelledTorch(version=torch.__version__, cuda=torch.version.cuda)


def modelled_torch(asked: str | None) -> ModelledTorch:
    """Return the release to predict for.

    Args:
        asked: `--torch-version`; None: the one that is installed.

    Raises:
        UsageError: a step that the installed release traces was not compared with that release.
    """
    own = installed_torch()
    if asked is None or release_of(asked) == own.release:
        return own
    compared = measured().compared_traces(own.version)
    if asked not in compared:
        listed = f"those for {' and '.join(compared)} were" if compared else "nor for any other"
        raise UsageError(
            f"torch {own.version} is installed, and what it predicts for torch {asked} was not compared with "
            f"torch {asked}; {listed}",
            hint=f"predict with torch {asked} installed {_BESIDE.format(asked)}",
        )
    cuda, cudnn = cuda_and_cudnn(release_of(asked))
    return ModelledTorch(version=asked, cuda=cuda, traced_by=own.version, cudnn=cudnn)

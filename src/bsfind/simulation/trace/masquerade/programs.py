"""What whole programs call, and a model and its step do not: loaders, checkpoints, process groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from unittest import mock

import torch
import torch.distributed

from bsfind.errors import UsageError
from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    reduced_tensor,
    replacing_pinning,
    replacing_reduced_tensor,
    without_fake,
)
from bsfind.workload.user_errors import user_line

SEVERAL = "`--gpu` predicts a training in one process, and the command starts a group of ranks"
ALONE = "start the script itself, without `torchrun`: a rank of DDP needs little more than one process alone"
"""What to tell where there are several ranks, and what to do."""


@contextlib.contextmanager
def programs_calls(is_on_gpu: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Let a program do what it does with a GPU while inside.

    - Loaders leave the batches where they are that they would copy to pinned memory.
    - Tensors without values are saved as zeros, in a file that is small.
    - A process group is refused.

    Args:
        is_on_gpu: tells a tensor on the simulated GPU from one of the host.
    """

    def reduced(tensor: torch.Tensor, protocol: int) -> Any:
        with TorchFunctionOff(), without_fake():
            if tensor.layout is torch.strided and is_on_gpu(tensor):
                zero = torch.zeros((), dtype=tensor.dtype)
                tensor = zero.expand(tensor.shape).requires_grad_(tensor.requires_grad)
            return reduced_tensor(tensor, protocol)

    own_save = torch.save

    def save(*args: Any, **kwargs: Any) -> None:
        with replacing_reduced_tensor(reduced):
            own_save(*args, **kwargs)

    with (
        replacing_pinning(lambda data, _device=None: data),
        mock.patch.multiple(torch, save=save),
        mock.patch.multiple(torch.distributed, init_process_group=_refuse_group),
    ):
        yield


def _refuse_group(*_: Any, **__: Any) -> NoReturn:
    where = user_line()
    raise UsageError(
        f"{SEVERAL}{f' (`init_process_group` in {where})' if where else ''}", hint=ALONE
    )

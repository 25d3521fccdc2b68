"""What whole programs call, and a step does not: loaders, checkpoints, threads, process groups."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
ALONE = "start the script itself, without `torchrun`; DDP needs the size of the gradients besides (buckets)"
"""What to tell where there are several ranks, and what to do."""


@contextlib.contextmanager
def programs_calls(
    is_on_gpu: Callable[[torch.Tensor], bool],
    active_in_thread: Callable[[], AbstractContextManager[None]],
) -> Iterator[None]:
    """Let a program do what it does with a GPU while inside.

    - Loaders leave the batches where they are that they would copy to pinned memory.
    - Tensors without values are saved as zeros, in a file that is small.
    - `torch.set_default_device` takes the GPU.
    - Threads that it starts have the GPU, too.
    - A process group is refused.

    Args:
        is_on_gpu: tells a tensor on the simulated GPU from one of the host.
        active_in_thread: returns what is entered in such a thread.
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

    own_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        own_run = thread.run

        def run() -> None:
            with active_in_thread():
                own_run()

        thread.run = run  # type: ignore[method-assign]
        own_start(thread)

    own_set, own_get = torch.set_default_device, torch.get_default_device

    def set_default_device(device: Any) -> None:
        # torch asks its default after the masquerade, which cannot translate it any more.
        is_gpu = device is not None and torch.device(device).type == "cuda"
        own_set("meta" if is_gpu else device)

    def get_default_device() -> torch.device:
        found = own_get()
        return torch.device("cuda", 0) if found.type == "meta" else found

    with (
        mock.patch.multiple(
            torch,
            save=save,
            set_default_device=set_default_device,
            get_default_device=get_default_device,
        ),
        mock.patch.multiple(threading.Thread, start=start),
        replacing_pinning(lambda data, _device=None: data),
        # torch's own reads the stream before anybody is asked.
        mock.patch.multiple(torch.Tensor, record_stream=lambda _tensor, _stream: None),
        mock.patch.multiple(torch.distributed, init_process_group=_refuse_group),
    ):
        yield


def _refuse_group(*_: Any, **__: Any) -> NoReturn:
    where = user_line()
    raise UsageError(
        f"{SEVERAL}{f' (`init_process_group` in {where})' if where else ''}", hint=ALONE
    )

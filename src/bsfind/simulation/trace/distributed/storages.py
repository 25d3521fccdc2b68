"""What programs do with storages themselves.

FSDP2 frees gathered parameters, and allocates them again, by resizing them. It tells by their addresses
whether two tensors share a storage (torch/distributed/fsdp/_fully_shard/_fsdp_param.py, torch 2.6-2.13).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from bsfind.simulation.trace.recorder import Recorder
from bsfind.simulation.trace.torch_private import TorchFunctionOff, address_of, replacing


@contextlib.contextmanager
def resizes_recorded(recorder: Recorder) -> Iterator[None]:
    """Record while inside what no operator does: `UntypedStorage.resize_`.

    Args:
        recorder: records it of storages on the simulated GPU.
    """
    own: Any = torch.UntypedStorage.resize_

    def resize_(storage: Any, size: int) -> Any:
        with TorchFunctionOff():
            out = own(storage, size)
            if recorder.knows(storage):
                recorder.allocate_storage(storage, "resize_")
        return out

    with replacing("resize_", torch.UntypedStorage)(resize_):
        yield


@contextlib.contextmanager
def storages_told_apart(recorder: Recorder) -> Iterator[None]:
    """Let each storage with memory of the simulated GPU have an address of its own while inside.

    Args:
        recorder: knows these storages.
    """
    own: Any = torch.UntypedStorage.data_ptr

    def data_ptr(storage: Any) -> int:
        with TorchFunctionOff():
            if recorder.knows(storage) and storage.nbytes():
                return int(address_of(storage))
            return int(own(storage))

    with replacing("data_ptr", torch.UntypedStorage)(data_ptr):
        yield

"""Groups of tensors by device, as optimizers and gradient clipping form them.

`torch._C._group_tensors_by_device_and_dtype` reads the device below Python, where the disguise of
simulated tensors does not reach. Its groups decide whether `torch._foreach_*` is used
(torch/utils/_foreach_utils.py, torch 2.6-2.13) and where new tensors are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    groups_of_tensors,
    replace_groups_of_tensors,
)

_CPU = torch.device("cpu")
_CUDA = torch.device("cuda", 0)


@contextlib.contextmanager
def cuda_groups(is_on_gpu: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Let groups of simulated tensors be groups of the GPU while inside.

    Args:
        is_on_gpu: tells a tensor on the simulated GPU from one of the host.
    """

    def grouped(*args: Any, **kwargs: Any) -> Any:
        groups = {}
        for (device, dtype), group in groups_of_tensors(*args, **kwargs).items():
            # A group is that of the devices of its first list.
            first = next((tensor for tensor in group[0][0] if tensor is not None), None)
            if device.type == "meta" and first is not None:
                with TorchFunctionOff():
                    device = _CUDA if is_on_gpu(first) else _CPU
            groups[device, dtype] = group
        return groups

    replace_groups_of_tensors(grouped)
    try:
        yield
    finally:
        replace_groups_of_tensors(groups_of_tensors)

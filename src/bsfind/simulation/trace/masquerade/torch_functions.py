"""Functions of torch that would notice, or ask, that simulated tensors are not CUDA's.

- A function of `torch.nn.functional` first asks whether an argument, or a mode, overrides it. The
  masquerade is a mode, so every such function would be handed to it and back. That call would hold
  the function's arguments to its end, while on the GPU one that the function replaces is freed at
  once (`var = var.clone()` in `gaussian_nll_loss`); and inside of it the masquerade would be off. The
  answer here is no, as it is without a mode; the operators that the function calls pass the
  masquerade anyway.
- `torch._C._group_tensors_by_device_and_dtype` reads the device below Python. Its groups decide
  whether `torch._foreach_*` is used (torch/utils/_foreach_utils.py, torch 2.6-2.13) and where new
  tensors are made.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.functional
import torch.nn.functional

from bsfind.simulation.trace.torch_private import (
    TorchFunctionOff,
    disabled_torch_function,
    groups_of_tensors,
    has_torch_function,
    register_scripted,
    replacing,
    replacing_groups_of_tensors,
    torch_function_modes,
)

_MODULES: tuple[ModuleType, ...] = (torch.functional, torch.nn.functional)


@functools.cache
def _overrides(kind: Any) -> bool:
    """Tell whether a class has its own ways (`check_has_torch_function`, disable_torch_function.cpp)."""
    if kind in (torch.Tensor, torch.nn.Parameter):
        return False
    own = getattr(kind, "__torch_function__", None)
    return own is not None and own is not disabled_torch_function


def _is_overridden(arguments: Sequence[Any]) -> bool:
    if torch_function_modes() > 1:  # a mode of the user's, which wants to be asked
        return bool(has_torch_function(arguments))
    kinds: list[Any] = [type(argument) for argument in arguments]
    return any(map(_overrides, kinds))


_ANSWERS = {
    "has_torch_function": _is_overridden,
    "has_torch_function_unary": lambda argument: _is_overridden((argument,)),
    "has_torch_function_variadic": lambda *arguments: _is_overridden(arguments),
}


@contextlib.contextmanager
def undelegated_functions() -> Iterator[None]:
    """Let torch's Python functions ignore the masquerade while inside."""
    with contextlib.ExitStack() as stack:
        for name, answer in _ANSWERS.items():
            register_scripted(answer, "aten::has_torch_function")
            owners = (module for module in _MODULES if hasattr(module, name))
            stack.enter_context(replacing(name, *owners)(answer))
        yield


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

    with replacing_groups_of_tensors(grouped):
        yield

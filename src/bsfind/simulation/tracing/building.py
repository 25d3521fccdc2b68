"""Builds a model without the memory and the time that its weights would take.

Each parameter becomes meta as it is registered: its values go, the object stays (so that tied
weights stay tied), and what initialises it afterwards costs nothing. Buffers, and whatever else the
constructor computes, are real tensors in the host's memory: constructors read those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from bsfind.simulation.tracing.dispatch import Dispatcher
from bsfind.simulation.tracing.torch_private import (
    TorchFunctionOff,
)

__all__ = ["parameters_on_meta"]


@contextlib.contextmanager
def parameters_on_meta(dispatcher: Dispatcher) -> Iterator[None]:
    """Turn each parameter that is registered inside to meta."""

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or is_lazy(parameter):
            return None
        return without_memory(dispatcher, parameter)

    # Its type says that a hook returns nothing; its text, that it may return a parameter.
    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def without_memory(dispatcher: Dispatcher, parameter: nn.Parameter) -> nn.Parameter | None:
    """Make a parameter meta, in place; returns one to take its place where that is impossible."""
    with TorchFunctionOff():
        if parameter.device.type != "cpu" or parameter.layout != torch.strided:
            return None
        twin = nn.Parameter(dispatcher.as_host_meta(parameter.detach()), parameter.requires_grad)
        if type(parameter) is not nn.Parameter:
            twin.__class__ = type(parameter)
        try:
            torch.utils.swap_tensors(parameter, twin)  # type: ignore[no-untyped-call]
        except (RuntimeError, AttributeError):  # others hold the tensor too, in C++
            twin.__dict__.update(parameter.__dict__)
            return twin
    return None

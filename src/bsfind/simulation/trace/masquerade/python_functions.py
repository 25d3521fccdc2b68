"""Lets torch's Python functions run by themselves under the disguise.

A function of `torch.nn.functional` first asks whether an argument, or a mode, overrides it. The
disguise is a mode, so every such function would be handed to it and back. That call would hold the
function's arguments to its end, while on the GPU one that the function puts something else in place
of is freed at once (`var = var.clone()` in `gaussian_nll_loss`); and inside of it the disguise would
be off. The answer here is no, as it is without a mode; the operators that the function calls pass
the disguise anyway.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.functional
import torch.nn.functional

from bsfind.simulation.trace.torch_private import (
    disabled_torch_function,
    has_torch_function,
    register_scripted,
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
    """Let torch's Python functions ignore the disguise while inside."""
    replaced = [
        (module, name, getattr(module, name))
        for module in _MODULES
        for name in _ANSWERS
        if hasattr(module, name)
    ]
    for answer in _ANSWERS.values():
        register_scripted(answer, "aten::has_torch_function")
    for module, name, _ in replaced:
        setattr(module, name, _ANSWERS[name])
    try:
        yield
    finally:
        for module, name, original in replaced:
            setattr(module, name, original)

"""Compiles again what a Python program had compiled before it passed it on (see `python.objects`)."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import nn

from bsfind.workload.user_errors import stands_for_torch


@stands_for_torch
def compiled(compiler: bytes, function: Any) -> Any:
    """Return a function or a module, compiled as it was; as it is, while `torch.compile` does nothing.

    Args:
        compiler: pickle of what `torch.compile(…)` returns, with its arguments.
        function: the function or the module.
    """
    if torch.compile.__module__.startswith("bsfind."):  # a prediction
        return torch.compile(function)
    return pickle.loads(compiler)(function)


@stands_for_torch
def compiled_in_place(compiler: bytes, module: nn.Module) -> nn.Module:
    """Return a module for which `module.compile(…)` was called (see `compiled`)."""
    module._compiled_call_impl = compiled(compiler, module._call_impl)
    return module

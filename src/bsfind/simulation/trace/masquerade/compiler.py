"""torch's compiler, which a prediction leaves out.

`torch.compile` returns what it is given, and so `nn.Module.compile` compiles nothing
(torch/nn/modules/module.py, torch 2.6-2.13).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch

from bsfind.simulation.trace.torch_private import replacing
from bsfind.workload.user_errors import is_installed_file, stands_for_torch, user_line

UNCOMPILED = "uncompiled"
"""Code of the warning that a compiled step was predicted as if it were not."""


_FOR_THE_USER = ("torch.nn.modules.module", "torch.compiler")
"""Modules of torch that compile what the user's code asks for; others compile functions of their own."""


def uncompiled_message(what: str) -> str:
    """Return the warning for the line, or the option, that asks for the compiler."""
    return (
        f"{what} is not followed: this predicts the uncompiled step. Compiled kernels choose their memory "
        "themselves, and may take more or less; `--device cuda` measures them, on a machine with a GPU"
    )


@contextlib.contextmanager
def uncompiled(note: Callable[[str, str], None]) -> Iterator[None]:
    """Let `torch.compile` return what it is given while inside.

    Args:
        note: called with the code and the text of a warning; for functions of installed packages, which
            compile some that nobody calls, as soon as they are called.
    """
    own = torch.compile

    def tell(where: str) -> None:
        note(UNCOMPILED, uncompiled_message(f"`torch.compile`{where}"))

    def left(model: Any) -> Any:
        if not isinstance(model, FunctionType) or not is_installed_file(model.__code__.co_filename):
            line = user_line()
            tell(f" in {line}" if line else "")
            return model

        @functools.wraps(model)
        @stands_for_torch
        def function(*args: Any, **kwargs: Any) -> Any:
            tell(f" of `{model.__module__}.{model.__qualname__}`")
            return model(*args, **kwargs)

        return function

    def returned(model: Any = None, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("torch.") and caller not in _FOR_THE_USER:
            return own(model, *args, **kwargs)
        return left if model is None else left(model)

    with replacing("compile", torch)(returned):
        yield

"""Puts off the import of torch's compiler until something compiles.

The first optimizer, the first checkpoint of activations, and the first meta kernel that is written in
Python import `torch._dynamo` for two marks on functions, which tell the compiler to leave them alone
(torch/_compile.py, torch/optim/optimizer.py, torch 2.6-2.14). That import takes as long as torch's own, in
every process. Until anything else of it is asked for, a module with these two stands in its place.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

_NAME = "torch._dynamo"


def postpone_compiler() -> None:
    """Let `import torch._dynamo` cost nothing for now; nothing happens if it was imported."""
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _Later(_NAME)


class _Later(ModuleType):
    """Becomes the real module as soon as it is asked for more than two marks."""

    @staticmethod
    def disable(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a function that the compiler leaves alone, once there is one."""
        if fn is None:
            return lambda function: _Later.disable(function, *args, **kwargs)
        if not isinstance(fn, FunctionType):
            return _compiler().disable(fn, *args, **kwargs)
        disabled: Callable[..., Any] | None = None

        def left_alone(*given: Any, **named: Any) -> Any:
            nonlocal disabled
            if disabled is None:
                if isinstance(sys.modules.get(_NAME), _Later):
                    return fn(*given, **named)
                disabled = _compiler().disable(fn, *args, **kwargs)
            return disabled(*given, **named)

        return left_alone

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        # What walks through all modules asks for these; `__path__` is a real import's question.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_compiler(), name)


def _compiler() -> Any:
    """Import the real module in place of the one that stands for it."""
    if isinstance(sys.modules.get(_NAME), _Later):
        del sys.modules[_NAME]
    return importlib.import_module(_NAME)

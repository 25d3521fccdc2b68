"""torch's compiler, imported only if something really uses it.

The first optimizer, and the first meta kernel that is written in Python, import `torch._dynamo` for
two marks on functions, which tell the compiler to leave them alone (torch/_compile.py and
torch/optim/optimizer.py, torch 2.6-2.13). That import takes as long as torch's own. Until anything
else of it is asked for, a module with these two stands in its place.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"


def postpone_compiler() -> None:
    """Let `import torch._dynamo` cost nothing for now; nothing happens if it was imported."""
    if _NAME not in sys.modules:
        sys.modules[_NAME] = _Later(_NAME)


class _Later(ModuleType):
    """Becomes the real module as soon as it is asked for more than two marks."""

    @staticmethod
    def disable(fn: Any = None, *_: Any, **__: Any) -> Any:
        """Return the function: nothing compiles it anyway."""
        return (lambda function: function) if fn is None else fn

    @staticmethod
    def graph_break(*_: Any, **__: Any) -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        # What walks through all modules asks for these; `__path__` is a real import's question.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)

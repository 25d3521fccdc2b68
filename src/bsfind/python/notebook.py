"""IPython, if the program runs in it: its shell, and the line that a notebook shows below a cell."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def shell() -> Any:
    """Return the shell of IPython; None: the program runs without it."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def line() -> Callable[[str], object] | None:
    """Return a function that shows a text in place of the one before; None: this is no notebook."""
    if getattr(shell(), "kernel", None) is None:
        return None
    display: Any = importlib.import_module("IPython.display").display
    shown = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda text: shown.update({"text/plain": text}, raw=True)

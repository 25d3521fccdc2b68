"""Stands first on PYTHONPATH of a command that bsfind runs: waits for torch, and lets the user's own follow.

Runs at the start of every Python of the command, of any version from 3.8 on, with no bsfind beside it. Until
torch is imported it costs next to nothing.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` takes a while to load
if TYPE_CHECKING:
    from typing import Any

# Not `pathlib`, for the same reason.
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120


class _Finder:
    """Finds torch as the others do, and has this process watched once it is loaded."""

    def __init__(self) -> None:
        self._is_busy = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch" or self._is_busy:
            return None
        import importlib.util

        self._is_busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_busy = False
        loader: Any = spec.loader if spec is not None else None
        load = getattr(loader, "exec_module", None)
        if load is None:
            return spec

        def exec_module(module: Any) -> None:
            load(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _watch(module)

        loader.exec_module = exec_module
        return spec


def _watch(torch: Any) -> None:
    """Load the probe, from the folder that has been taken off the path."""
    import importlib.util

    name = "_bsfind_probe"
    file = os.path.join(_HERE, f"{name}.py")  # noqa: PTH118
    spec: Any = importlib.util.spec_from_file_location(name, file)
    probe = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    probe.watch(torch)


def _go_on() -> None:
    """Leave the folder of this file, and run the `sitecustomize` that it hides, if there is one."""
    import importlib.machinery
    import importlib.util

    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != _HERE]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if "BSFIND_PROBE" in os.environ:
    sys.meta_path.insert(0, _Finder())
_go_on()

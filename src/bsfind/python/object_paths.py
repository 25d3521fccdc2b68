"""From a class or a function to the import path by which another process finds it."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from bsfind.errors import UsageError
from bsfind.import_path import parse_import_path

ADVICE = (
    "the model runs in another process, which cannot import this: `pip install 'bsfind[notebook]'` lets "
    "bsfind pass it on; or put it into a module and pass 'models.py:Net'"
)


_GUARD = re.compile(r"""\b__name__\s*==\s*["']__main__["']""")


@dataclass(frozen=True)
class ModelRef:
    """A model as the worker can import it.

    Attributes:
        path: its import path.
        app_dir: the folder that has to be on `sys.path` for that; None: the current one will do.
    """

    path: str
    app_dir: str | None = None


def has_cloudpickle() -> bool:
    """Tell whether what has no import path can be pickled."""
    return importlib.util.find_spec("cloudpickle") is not None


def importable(thing: type | FunctionType) -> ModelRef:
    """Return where another process finds a class or a function by its name.

    Raises:
        UsageError: it does not.
    """
    name = thing.__qualname__
    try:
        parse_import_path(f"module:{name}")
    except ValueError:  # `<lambda>`, `make.<locals>.Net`
        raise UsageError(f"`{name}` cannot be imported by its name", hint=ADVICE) from None
    module = sys.modules.get(thing.__module__)
    if module is None or _attribute(module, name) is not thing:
        raise UsageError(
            f"`{thing.__module__}:{name}` is another object than the one that was passed",
            hint=ADVICE,
        )
    return _in_module(module, name)


def _in_module(module: ModuleType, name: str) -> ModelRef:
    file = getattr(module, "__file__", None)
    module_name = module.__name__
    if module_name == "__main__":
        spec = getattr(module, "__spec__", None)
        if file is not None and has_cloudpickle() and not _is_guarded(Path(file)):
            raise UsageError(
                f"`{name}` is defined in a script that starts a search whenever it is run"
            )
        if spec is None:
            if file is None or not file.endswith(".py"):  # a notebook, the prompt
                raise UsageError(f"`{name}` is defined in no file", hint=ADVICE)
            return ModelRef(f"{Path(file).resolve()}:{name}")
        module_name = spec.name  # `python -m package.module`
    if file is None:
        return ModelRef(f"{module_name}:{name}")  # built in
    root = _root(module_name, Path(file).resolve())
    if root is None:  # loaded from a file under a name of its own
        return ModelRef(f"{Path(file).resolve()}:{name}")
    is_installed = {"site-packages", "dist-packages"} & set(root.parts)
    return ModelRef(f"{module_name}:{name}", None if is_installed else str(root))


def _is_guarded(script: Path) -> bool:
    """Tell whether a script asks if it is `__main__`: else the worker, too, would start a search."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _GUARD.search(script.read_text(encoding="utf-8")) is not None
    return False


def _root(module_name: str, file: Path) -> Path | None:
    """Return the folder from which a module is imported by its name; None if there is none."""
    parts = module_name.split(".")
    place = file.parent if file.stem == "__init__" else file.with_suffix("")
    if list(place.parts[-len(parts) :]) != parts:
        return None
    return place.parents[len(parts) - 1]


def _attribute(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def folder_of(cls: type) -> str | None:
    """Return the folder from which the worker can import the class of an instance."""
    module = sys.modules.get(cls.__module__)
    with contextlib.suppress(UsageError):
        return _in_module(module, cls.__qualname__).app_dir if module else None
    return None

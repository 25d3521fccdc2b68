"""Import paths of Python objects: the worker is another process, and imports what it trains.

    importable by name                `package.module:Net`, and the folder that it is found in
    defined in the script that runs   `path/script.py:Net` (the worker runs the script, not as main)
    an instance                       pickled, for as long as the search lasts

Everything else (lambdas, closures, classes of a notebook's cells) has no name that another process
could import, and is refused with advice.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from bsfind.errors import UsageError
from bsfind.import_path import ImportPath, parse_import_path, resolve

_ADVICE = (
    "the search runs in another process, which imports the model: put it into a module "
    "(`%%writefile models.py` in a notebook) and pass `models.Net` or 'models.py:Net'"
)


@dataclass(frozen=True)
class Target:
    """A model as the worker can get at it.

    Attributes:
        path: its import path.
        app_dir: the folder that has to be on `sys.path` for that; None: the current one will do.
        is_pickled: whether `path` exists during the search alone.
    """

    path: str
    app_dir: str | None = None
    is_pickled: bool = False


def is_worker() -> bool:
    """Tell whether this process is a worker, which runs the module that a model is in."""
    entry = getattr(sys.modules.get("__main__"), "main", None)
    return getattr(entry, "__module__", None) == "bsfind.worker.loop"


def locate(model: Any, folder: Path) -> Target:
    """Return where the worker finds a model.

    Args:
        model: an import path, a class, a function, or an instance.
        folder: where an instance may be written to.

    Raises:
        UsageError: another process cannot get at it.
    """
    if isinstance(model, str):
        return Target(model)
    if isinstance(model, (type, FunctionType)):
        return _importable(model)
    if callable(getattr(model, "parameters", None)):
        return _pickled(model, folder)
    raise UsageError(
        f"a `{type(model).__name__}` is no model",
        hint="pass an import path, an `nn.Module` class or instance, or a function that returns one",
    )


def callable_name(function: Any, option: str) -> str:
    """Return the import path of a loss, an optimizer, a step or a batch function.

    Raises:
        UsageError: another process cannot import it.
    """
    if isinstance(function, str):
        return function
    module = getattr(function, "__module__", "") or ""
    if isinstance(function, type) and module.startswith("torch.optim."):
        return function.__name__  # as the command line names it
    if not isinstance(function, (type, FunctionType)):
        raise UsageError(f"`{option}` is a `{type(function).__name__}`, not a function by its name")
    return _importable(function).path


def _importable(thing: type | FunctionType) -> Target:
    name = thing.__qualname__
    try:
        parse_import_path(f"module:{name}")
    except ValueError:  # `<lambda>`, `make.<locals>.Net`
        raise UsageError(f"`{name}` cannot be imported by its name", hint=_ADVICE) from None
    module = sys.modules.get(thing.__module__)
    if module is None or _attribute(module, name) is not thing:
        raise UsageError(
            f"`{thing.__module__}:{name}` is another object than the one that was passed",
            hint=_ADVICE,
        )
    return _in_module(module, name)


def _in_module(module: ModuleType, name: str) -> Target:
    file = getattr(module, "__file__", None)
    module_name = module.__name__
    if module_name == "__main__":
        spec = getattr(module, "__spec__", None)
        if spec is None:
            if file is None or not file.endswith(".py"):  # a notebook, the prompt
                raise UsageError(f"`{name}` is defined in no file", hint=_ADVICE)
            return Target(f"{Path(file).resolve()}:{name}")
        module_name = spec.name  # `python -m package.module`
    if file is None:
        return Target(f"{module_name}:{name}")  # built in
    root = _root(module_name, Path(file).resolve())
    if root is None:  # loaded from a file under a name of its own
        return Target(f"{Path(file).resolve()}:{name}")
    is_installed = {"site-packages", "dist-packages"} & set(root.parts)
    return Target(f"{module_name}:{name}", None if is_installed else str(root))


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


class _Pickler(pickle.Pickler):
    """Refers to what the script that runs defines by its file: in the worker, it is not `__main__`."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, (type, FunctionType)) and thing.__module__ == "__main__":
            path = parse_import_path(_importable(thing).path)
            return resolve, (ImportPath(path.module, path.attribute),)
        return NotImplemented


def _pickled(model: Any, folder: Path) -> Target:
    name = type(model).__name__
    _check_on_host(model)
    data = io.BytesIO()
    try:
        _Pickler(data, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"this `{name}` cannot be handed to another process", detail=str(error), hint=_ADVICE
        ) from None
    (folder / "model.pickle").write_bytes(data.getvalue())
    file = folder / f"{name}.py"
    file.write_text(
        "import pathlib, pickle\n"
        "file = pathlib.Path(__file__).with_name('model.pickle')\n"
        "instance = pickle.loads(file.read_bytes())\n",
        encoding="utf-8",
    )
    return Target(f"{file}:instance", _app_dir(type(model)), is_pickled=True)


def _app_dir(cls: type) -> str | None:
    """Return the folder from which the worker can import the class of an instance."""
    module = sys.modules.get(cls.__module__)
    return _in_module(module, cls.__qualname__).app_dir if module else None


def _check_on_host(model: Any) -> None:
    """Refuse a model that holds memory of the GPU, which the search would then count as taken.

    Raises:
        UsageError: a parameter or buffer is on a device.
    """
    tensors: list[Callable[[], Any]] = [model.parameters]
    if callable(getattr(model, "buffers", None)):
        tensors.append(model.buffers)
    for place in {tensor.device.type for make in tensors for tensor in make()} - {"cpu", "meta"}:
        raise UsageError(
            f"the model is on `{place}` already: its memory there cannot be searched",
            hint="pass its class and `model_arg`, or the instance after `model.cpu()`",
        )

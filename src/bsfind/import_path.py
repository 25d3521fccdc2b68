"""Import paths of Python objects, `package.module:attr` and `path/file.py:attr`: to the object and back.

The target, `--loss`, `--optimizer`, `--step`, `--batch-fn` and values such as
`--model-arg config=mypkg.configs:small()` are all written this way.

A worker is another process, which imports what it trains. For a Python program that has the object:

    importable by name                `package.module:Net`, and the folder that it is found in
    defined in the script that runs   `path/script.py:Net` (the worker runs the script, not as main)
    an instance                       pickled, for as long as the search lasts

Everything else (lambdas, closures, classes of a notebook's cells) has no name that another process
could import, and is refused with advice.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import io
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from bsfind.errors import TargetError, UsageError

_ATTRIBUTE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_CALL = re.compile(rf"([^\s:]+:{_ATTRIBUTE})\(\)")

_ADVICE = (
    "the search runs in another process, which imports the model: put it into a module "
    "(`%%writefile models.py` in a notebook) and pass `models.Net` or 'models.py:Net'"
)


@dataclass(frozen=True)
class ImportPath:
    """Where an object is: a module's name or a file's path, and the dotted name in it."""

    module: str
    attribute: str

    @property
    def is_file(self) -> bool:
        """Whether `module` is the path of a file rather than a module's name."""
        return self.module.endswith(".py") or "/" in self.module or "\\" in self.module

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


def is_import_path(text: str) -> bool:
    """Tell whether `text` looks like `module:attr` rather than a plain name."""
    return ":" in text


def parse_import_path(text: str) -> ImportPath:
    """Read `package.module:attr` or `path/file.py:attr`, without importing anything.

    Raises:
        ValueError: not of this form; the message says what to write.
    """
    module, colon, attribute = text.rpartition(":")
    if not colon or not module:
        stem, _, last = text.rpartition(".")
        if text.endswith(".py"):
            raise ValueError(f"`{text}` names a file but nothing in it, write `{text}:Net`")
        example = f"`{stem}:{last}`" if stem.isidentifier() or "." in stem else "`mypkg.models:Net`"
        raise ValueError(f"`{text}` is not `MODULE:ATTRIBUTE`, write it like {example}")
    if not re.fullmatch(_ATTRIBUTE, attribute):
        raise ValueError(f"`{attribute}` in `{text}` is not the name of an attribute")
    path = ImportPath(module, attribute)
    if not path.is_file and not re.fullmatch(_ATTRIBUTE, module):
        raise ValueError(f"`{module}` in `{text}` is neither a module's name nor a path to a `.py`")
    return path


def resolve(path: ImportPath) -> Any:
    """Import the module (or run the file) and return the object.

    Whatever the module's own code raises passes through unchanged.

    Raises:
        TargetError: there is no such module, file or attribute; the hint names the nearest one.
    """
    module = _load_file(path) if path.is_file else _import_module(path)
    found: Any = module
    where = f"{path.module}:"
    for name in path.attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise TargetError(
                f"cannot find `{name}` in `{where.rstrip(':.')}`",
                hint=_nearest_attribute(found, name, where),
            ) from None
        where += f"{name}."
    return found


def resolve_function(text: str, wanted: str = "a function") -> Callable[..., Any]:
    """Return what `package.module:attr` or `path/file.py:attr` names, which has to be callable.

    Args:
        text: the import path.
        wanted: what it should name, for the error: `an optimizer`.

    Raises:
        TargetError: there is no such object, or it is not callable.
    """
    found = resolve(parse_import_path(text))
    if not callable(found):
        raise TargetError(f"`{text}` is of type `{type(found).__name__}`, not {wanted}")
    return found  # type: ignore[no-any-return]


def _import_module(path: ImportPath) -> ModuleType:
    try:
        return importlib.import_module(path.module)
    except ModuleNotFoundError as error:
        # A module of the user's that fails on its own imports raises through.
        missing = error.name or ""
        if not (path.module == missing or path.module.startswith(missing + ".")):
            raise
    searched = ", ".join(f"`{entry or '.'}`" for entry in sys.path[:1])
    stem = Path(*path.module.split("."))
    nearby = stem.with_suffix(".py")
    hint = f"run from the project's root, or pass `--app-dir` (searched {searched} first)"
    if missing != path.module:
        hint = f"`{missing}` was not found in {searched}, nor where Python's packages are installed"
    elif nearby.exists():
        hint = f"pass the file itself: `{nearby}:{path.attribute}`"
    raise TargetError(
        f"cannot import `{path.module}`", detail=f"No module named `{missing}`", hint=hint
    )


def _load_file(path: ImportPath) -> ModuleType:
    file = Path(path.module).expanduser()
    if not file.is_file():
        nearest = difflib.get_close_matches(file.name, _python_files(file.parent), n=1)
        hint = f"did you mean `{file.parent / nearest[0]}`?" if nearest else ""
        raise TargetError(f"there is no file `{path.module}`", hint=hint)
    return _run_file(file.resolve())


@functools.cache  # `--step train.py:step` is to see the classes of the target `train.py:Net`
def _run_file(file: Path) -> ModuleType:
    name = re.sub(r"\W", "_", file.stem)
    # The file's siblings are importable, as they are under `python path/file.py`.
    sys.path.insert(1, str(file.parent))
    if name in sys.modules:
        name = f"bsfind_target_{name}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise TargetError(f"`{file}` is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _python_files(folder: Path) -> list[str]:
    return [entry.name for entry in folder.glob("*.py")] if folder.is_dir() else []


def _nearest_attribute(owner: Any, name: str, where: str) -> str:
    public = [attr for attr in dir(owner) if not attr.startswith("_")]
    nearest = difflib.get_close_matches(name, public, n=1, cutoff=0.5)
    if not nearest:
        by_lower_case = {attr.lower(): attr for attr in public}
        nearest = [by_lower_case[name.lower()]] if name.lower() in by_lower_case else []
    if nearest:
        return f"did you mean `{where}{nearest[0]}`?"
    return f"it defines {', '.join(f'`{attr}`' for attr in public[:8])}" if public else ""


def parse_value(text: str) -> Any:
    """Return the value of `KEY=VALUE` on the command line.

    A Python literal (`3`, `0.1`, `(1, 2)`, `None`, `True`), the result of calling `pkg.mod:attr()`,
    or else the text itself.

    Raises:
        TargetError: `pkg.mod:attr` does not exist.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    call = _CALL.fullmatch(text.strip())
    if call is not None:
        return resolve(parse_import_path(call[1]))()
    return {"true": True, "false": False}.get(text.lower(), text)


def value_text(value: Any) -> str:
    """Return the text from which `parse_value` makes a value: a Python literal, or a text as it is.

    Raises:
        ValueError: no text stands for the value.
    """
    if isinstance(value, str):
        is_taken = _is_literal(value) or value.lower() in ("true", "false")
        return repr(value) if is_taken else value
    text = repr(value)
    if _is_literal(text) and ast.literal_eval(text) == value:
        return text
    raise ValueError(f"no text stands for a `{type(value).__name__}`")


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


# ------------------------------------------------------------------------- from object to path


@dataclass(frozen=True)
class ModelRef:
    """A model as the worker can import it.

    Attributes:
        path: its import path.
        app_dir: the folder that has to be on `sys.path` for that; None: the current one will do.
        is_pickled: whether `path` exists during the search alone.
    """

    path: str
    app_dir: str | None = None
    is_pickled: bool = False


def locate(model: Any, folder: Path) -> ModelRef:
    """Return the import path of a model.

    Args:
        model: an import path, a class, a function, or an instance.
        folder: where an instance may be written to.

    Raises:
        UsageError: another process cannot import it.
    """
    if isinstance(model, str):
        return ModelRef(model)
    if isinstance(model, (type, FunctionType)):
        return _importable(model)
    if callable(getattr(model, "parameters", None)):
        return _pickled(model, folder)
    raise UsageError(
        f"a `{type(model).__name__}` is not a model",
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


def _importable(thing: type | FunctionType) -> ModelRef:
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


def _in_module(module: ModuleType, name: str) -> ModelRef:
    file = getattr(module, "__file__", None)
    module_name = module.__name__
    if module_name == "__main__":
        spec = getattr(module, "__spec__", None)
        if spec is None:
            if file is None or not file.endswith(".py"):  # a notebook, the prompt
                raise UsageError(f"`{name}` is defined in no file", hint=_ADVICE)
            return ModelRef(f"{Path(file).resolve()}:{name}")
        module_name = spec.name  # `python -m package.module`
    if file is None:
        return ModelRef(f"{module_name}:{name}")  # built in
    root = _root(module_name, Path(file).resolve())
    if root is None:  # loaded from a file under a name of its own
        return ModelRef(f"{Path(file).resolve()}:{name}")
    is_installed = {"site-packages", "dist-packages"} & set(root.parts)
    return ModelRef(f"{module_name}:{name}", None if is_installed else str(root))


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


def _pickled(model: Any, folder: Path) -> ModelRef:
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
    return ModelRef(f"{file}:instance", _app_dir(type(model)), is_pickled=True)


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

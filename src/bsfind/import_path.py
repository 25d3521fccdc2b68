"""Names of Python objects on the command line: `package.module:attr` and `path/file.py:attr`.

The target, `--loss`, `--optimizer`, `--step`, `--batch-fn` and values such as
`--model-arg config=mypkg.configs:small()` are all written this way.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bsfind.errors import TargetError

_ATTRIBUTE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_CALL = re.compile(rf"([^\s:]+:{_ATTRIBUTE})\(\)")


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
        # A module of the user's that fails on its own imports is another story: let it pass.
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

"""Import paths of Python objects, `package.module:attr` and `path/file.py:attr`, and what they name.

The target, `--loss`, `--optimizer`, `--step`, `--batch-fn` and values such as
`--model-arg config=mypkg.configs:small()` are all written this way.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bsfind.errors import TargetError, UsageError
from bsfind.units import brief

_ATTRIBUTE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_HUB = "hf:"
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


_folder: Path | None = None


def keep_folder() -> None:
    """Read relative paths from the current folder on, also when the user's code changes it."""
    global _folder
    with contextlib.suppress(OSError):  # it was removed
        _folder = Path.cwd()


def in_folder(path: Path) -> Path:
    """Return a path that stays the same when the current folder changes (see `keep_folder`)."""
    return path if _folder is None else _folder / path


def make_importable(app_dir: str) -> None:
    """Put the folder of `--app-dir` first on `sys.path`; to be called once torch is imported.

    Then nothing in the folder can stand in its way.

    Raises:
        UsageError: there is no such folder.
    """
    folder = in_folder(Path(app_dir)).resolve()
    if not os.path.isdir(folder):  # noqa: PTH112 (it may be in one that cannot be read)
        raise UsageError(f"`--app-dir`: there is no folder `{folder}`")
    if sys.path[0] != str(folder):
        sys.path.insert(0, str(folder))


def is_import_path(text: str) -> bool:
    """Tell whether `text` looks like `module:attr` rather than a plain name."""
    return ":" in text


def parse_import_path(text: str) -> ImportPath:
    """Read `package.module:attr` or `path/file.py:attr`, without importing anything.

    A target can also be `hf:NAME`, a model of the Hugging Face Hub or in a folder.

    Raises:
        ValueError: not of this form; the message says what to write.
    """
    if text.startswith(_HUB) and text != _HUB:
        return ImportPath(_HUB[:-1], text.removeprefix(_HUB))
    module, colon, attribute = text.rpartition(":")
    if not colon or not module:
        stem, _, last = text.rpartition(".")
        if text.endswith(".py"):
            raise ValueError(
                f"`{brief(text)}` names a file but nothing in it, write `{brief(text)}:Net`"
            )
        example = (
            f"`{brief(stem)}:{brief(last)}`"
            if stem.isidentifier() or "." in stem
            else "`mypkg.models:Net`"
        )
        raise ValueError(f"`{brief(text)}` is not `MODULE:ATTRIBUTE`, write it like {example}")
    if not re.fullmatch(_ATTRIBUTE, attribute):
        raise ValueError(f"`{brief(attribute)}` in `{brief(text)}` is not the name of an attribute")
    path = ImportPath(module, attribute)
    if not path.is_file and not re.fullmatch(_ATTRIBUTE, module):
        raise ValueError(
            f"`{brief(module)}` in `{brief(text)}` is neither a module's name nor a path to a `.py`"
        )
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
    with contextlib.suppress(OSError):
        if missing == path.module and in_folder(nearby).exists():
            hint = f"pass the file itself: `{nearby}:{path.attribute}`"
    raise TargetError(
        f"cannot import `{path.module}`", detail=f"No module named `{missing}`", hint=hint
    )


def _load_file(path: ImportPath) -> ModuleType:
    file = in_folder(Path(path.module).expanduser())
    try:
        is_file = file.is_file()
    except OSError as error:  # too long a name, or a folder that may not be read
        raise TargetError(f"cannot read `{path.module}`", detail=error.strerror or "") from None
    if not is_file:
        nearest = difflib.get_close_matches(file.name, _python_files(file.parent), n=1)
        near = Path(path.module).with_name(nearest[0]) if nearest else None
        hint = f"did you mean `{near}`?" if near else ""
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
    with contextlib.suppress(Exception):  # of its own code, or of one that is nested too deep
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

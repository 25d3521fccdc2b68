"""`[tool.bsfind]` of the nearest pyproject.toml: defaults that environment and flags override."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bsfind.errors import UsageError

__all__ = ["REPEATABLE", "find_configuration", "read_configuration"]

REPEATABLE = frozenset(("model-arg", "input-shape", "input", "optimizer-arg"))
"""Options that may be given more than once."""


def find_configuration(folder: Path) -> Path | None:
    """Return the nearest pyproject.toml that has a `[tool.bsfind]`, here or above."""
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        # Most have no such table: a look at the text spares them the parser.
        if file.is_file() and "tool.bsfind" in file.read_text(encoding="utf-8", errors="replace"):
            return file
    return None


def read_configuration(file: Path, known: Collection[str]) -> dict[str, Any]:
    """Return the options of `[tool.bsfind]` by parameter name.

    Args:
        file: a pyproject.toml.
        known: names of the options as they are written there (`input-shape`).

    Raises:
        UsageError: not TOML, an unknown key, or a value that no option takes.
    """
    table = _load(file).get("tool", {}).get("bsfind", {})
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.65)
            hint = f"did you mean `{nearest[0]}`?" if nearest else "`bsfind run --help` lists them"
            raise UsageError(f"`{file}` has an unknown key `{key}` in [tool.bsfind]", hint=hint)
        if not isinstance(value, (bool, int, float, str, list)):
            raise UsageError(f"`{key}` in [tool.bsfind] of `{file}` is no text, number or list")
        options[name.replace("-", "_")] = _as_text(value, is_repeatable=name in REPEATABLE)
    return options


def _load(file: Path) -> dict[str, Any]:
    try:
        import tomllib as toml
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as toml  # type: ignore[no-redef,import-not-found,unused-ignore]
        except ModuleNotFoundError:
            raise UsageError(
                f"`{file}` has a [tool.bsfind], which Python 3.10 needs `tomli` to read",
                hint="`pip install tomli`",
            ) from None
    try:
        return toml.loads(file.read_text(encoding="utf-8"))
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"`{file}` is not valid TOML: {error}") from None


def _as_text(value: Any, *, is_repeatable: bool) -> Any:
    """Return a value as the command line would have it: options read their own texts."""
    if isinstance(value, bool):
        return value
    items = value if isinstance(value, list) else [value]
    texts = [str(item) for item in items]
    if is_repeatable and not all(isinstance(item, int) for item in items):
        return texts
    text = ",".join(texts)  # `input-shape = [3, 224, 224]` is one shape
    return [text] if is_repeatable else text

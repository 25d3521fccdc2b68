"""`[tool.bsfind]` of the nearest pyproject.toml: defaults that environment and flags override.

A table of it, chosen with `--profile NAME`, overrides the general options:

    [tool.bsfind]
    headroom = "8%"

    [tool.bsfind.profiles.NAME]
    gpu = "a10g"

Command line > `BSFIND_*` > profile > `[tool.bsfind]` > default.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsfind.errors import UsageError

REPEATABLE = frozenset(("model-arg", "input-shape", "input", "optimizer-arg"))
"""Options that may be given more than once."""

_TABLE = "[tool.bsfind]"


@dataclass(frozen=True)
class Configuration:
    """What a configuration file says.

    Attributes:
        file: the pyproject.toml.
        table: options of `[tool.bsfind]`, by parameter name (`input_shape`).
        profile: the name of the chosen profile; None without one.
        overrides: the options of that profile, which go first.
    """

    file: Path
    table: dict[str, Any]
    profile: str | None
    overrides: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """All options, those of the profile in place of the general ones."""
        return {**self.table, **self.overrides}

    def source(self, name: str) -> str:
        """Return the file and the table that an option is from."""
        is_override = name in self.overrides
        return f"{self.file.name} {_profile_table(self.profile) if is_override else _TABLE}"


def find_configuration(folder: Path) -> Path | None:
    """Return the nearest pyproject.toml that has a `[tool.bsfind]`, here or above."""
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        # Most have no such table: a look at the text spares them the parser.
        if file.is_file() and "tool.bsfind" in file.read_text(encoding="utf-8", errors="replace"):
            return file
    return None


def read_configuration(
    file: Path, known: Collection[str], profile: str | None = None
) -> Configuration:
    """Return the options of `[tool.bsfind]`, and of one of its profiles.

    Args:
        file: a pyproject.toml.
        known: names of the options as they are written there (`input-shape`).
        profile: the name of the profile; None: none.

    Raises:
        UsageError: not TOML, an unknown key or profile, or a value that no option takes.
    """
    table = _load(file).get("tool", {}).get("bsfind", {})
    profiles = table.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UsageError(
            f"`profiles` in {_TABLE} of `{file}` is no table of tables",
            hint="write a profile as `[tool.bsfind.profiles.NAME]`, its options below",
        )
    options = _read_table(table, file, _TABLE, known)
    overrides = {
        # All of them are read: a typo is told before the day on which the profile is needed.
        name: _read_table(entries, file, _profile_table(name), known)
        for name, entries in profiles.items()
    }
    if profile is not None and profile not in overrides:
        raise _unknown_profile(profile, overrides, file)
    return Configuration(file, options, profile, overrides[profile] if profile else {})


def profile_names(file: Path) -> list[str]:
    """Return the names of the profiles in a configuration file.

    Raises:
        UsageError: not TOML.
    """
    profiles = _load(file).get("tool", {}).get("bsfind", {}).get("profiles", {})
    return sorted(profiles) if isinstance(profiles, dict) else []


def _profile_table(profile: str | None) -> str:
    return f"[tool.bsfind.profiles.{profile}]"


def _unknown_profile(profile: str, known: Collection[str], file: Path) -> UsageError:
    message = f"there is no profile `{profile}` in `{file}`"
    nearest = difflib.get_close_matches(profile, sorted(known), n=1, cutoff=0.5)
    if nearest:
        return UsageError(message, hint=f"did you mean `--profile {nearest[0]}`?")
    if known:
        return UsageError(
            message, hint=f"it has {', '.join(f'`{name}`' for name in sorted(known))}"
        )
    return UsageError(message, hint=f"write one as `{_profile_table(profile)}`, its options below")


def _read_table(
    table: dict[str, Any], file: Path, where: str, known: Collection[str]
) -> dict[str, Any]:
    """Return the options of one table by parameter name, as the command line would have them."""
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            candidates = sorted(known) + (["profiles"] if where == _TABLE else [])
            nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.65)
            hint = f"did you mean `{nearest[0]}`?" if nearest else "`bsfind run --help` lists them"
            raise UsageError(f"`{file}` has an unknown key `{key}` in {where}", hint=hint)
        if not isinstance(value, (bool, int, float, str, list)):
            raise UsageError(f"`{key}` in {where} of `{file}` is no text, number or list")
        options[name.replace("-", "_")] = as_text(value, is_repeatable=name in REPEATABLE)
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


def as_text(value: Any, *, is_repeatable: bool) -> Any:
    """Return a value as the command line would have it: options read their own texts.

    Args:
        value: of a TOML file, or of a Python program.
        is_repeatable: whether the option may be given more than once.
    """
    if isinstance(value, bool):
        return value
    items = value if isinstance(value, (list, tuple)) else [value]
    texts = [
        ",".join(map(str, item)) if isinstance(item, (list, tuple)) else str(item) for item in items
    ]
    if is_repeatable and not all(isinstance(item, int) for item in items):
        return texts
    text = ",".join(texts)  # `input-shape = [3, 224, 224]` is one shape
    return [text] if is_repeatable else text

"""Where the values of options come from: the nearest pyproject.toml, and what overrides it.

A profile, chosen with `--profile NAME`, overrides the general options:

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

import typer

from bsfind.cli.options import OPTIONS
from bsfind.errors import UsageError

_TABLE = "[tool.bsfind]"
_CONFIGURABLE = {option.key: option for option in OPTIONS if option.is_in_file}
"""The options that may stand in a file. One file serves all commands: each takes the options that it has."""

_META = "bsfind.configuration"
"""The key of the context's `meta` under which the `Configuration` is, where there is a file."""


@dataclass(frozen=True)
class Configuration:
    """The options of a configuration file.

    Attributes:
        file: the pyproject.toml.
        table: options of `[tool.bsfind]`, by parameter name (`input_shape`).
        profile: the name of the chosen profile; None without one.
        overrides: the options of that profile, which take precedence.
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
        """Return the file and the table that an option comes from."""
        is_override = name in self.overrides
        return f"{self.file.name} {_profile_table(self.profile) if is_override else _TABLE}"


def configure(context: typer.Context, profile: str | None) -> None:
    """Make the nearest configuration file the defaults of a command.

    Args:
        context: of the command, whose options are not read yet.
        profile: the name of the profile to use; None: none.

    Raises:
        UsageError: see `read_configuration`; or a profile is asked for and there is no file.
    """
    file = find_configuration(Path.cwd())
    if file is not None:
        found = read_configuration(file, profile)
        ours = {parameter.name for parameter in context.command.params}
        context.default_map = {name: value for name, value in found.options.items() if name in ours}
        context.meta[_META] = found
    elif profile is not None:
        raise UsageError(
            f"there is no profile `{profile}`: no pyproject.toml here or above has a [tool.bsfind]",
            hint=f"write one as `{_profile_table(profile)}`, its options below",
        )


def find_configuration(folder: Path) -> Path | None:
    """Return the nearest pyproject.toml that has a `[tool.bsfind]`, here or above."""
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        # Most files have no such table: a search of the text is faster than the parser.
        if file.is_file() and "tool.bsfind" in file.read_text(encoding="utf-8", errors="replace"):
            return file
    return None


def read_configuration(file: Path, profile: str | None = None) -> Configuration:
    """Return the options of `[tool.bsfind]`, and of one of its profiles.

    Args:
        file: a pyproject.toml.
        profile: the name of the profile; None: none.

    Raises:
        UsageError: not TOML, an unknown key or profile, or a value that no option takes.
    """
    table = _load(file).get("tool", {}).get("bsfind", {})
    profiles = table.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UsageError(
            f"`profiles` in {_TABLE} of `{file}` must contain only tables",
            hint="write a profile as `[tool.bsfind.profiles.NAME]`, its options below",
        )
    options = _read_table(table, file, _TABLE)
    overrides = {
        # Every profile is checked, so that typos surface early.
        name: _read_table(entries, file, _profile_table(name))
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


def _read_table(table: dict[str, Any], file: Path, where: str) -> dict[str, Any]:
    """Return the options of one table by parameter name, as the command line would have them."""
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in _CONFIGURABLE:
            candidates = sorted(_CONFIGURABLE) + (["profiles"] if where == _TABLE else [])
            nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.65)
            hint = f"did you mean `{nearest[0]}`?" if nearest else "`bsfind run --help` lists them"
            raise UsageError(f"`{file}` has an unknown key `{key}` in {where}", hint=hint)
        if not isinstance(value, (bool, int, float, str, list)):
            raise UsageError(
                f"`{key}` in {where} of `{file}` must be a string, number, boolean or list"
            )
        option = _CONFIGURABLE[name]
        options[option.name] = _as_text(value, repeats=option.kind.repeats)
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


def _as_text(value: Any, *, repeats: bool) -> Any:
    """Return a value of a TOML file as the command line would have it.

    Args:
        value: a string, number, boolean or list.
        repeats: whether the option may be given more than once; its values are a list then.
    """
    if isinstance(value, bool):
        return value
    items = value if isinstance(value, list) else [value]
    texts = [",".join(map(str, item)) if isinstance(item, list) else str(item) for item in items]
    if repeats and not all(isinstance(item, int) for item in items):
        return texts
    text = ",".join(texts)  # `input-shape = [3, 224, 224]` is one shape
    return [text] if repeats else text


# ------------------------------------------------------------------------------------ provenance


def given_options(context: typer.Context) -> frozenset[str]:
    """Return the names of the parameters that the command line, a variable or a file gave."""
    return frozenset(
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    )


def tell_provenance(context: typer.Context) -> None:
    """With `--verbose`, print every option that was given and where its value comes from."""
    if not context.params["verbose"]:
        return
    from bsfind.cli.console import Terminal

    terminal = Terminal(color=context.params["color"])
    for line in _provenance(context):
        terminal.note(line)


def _provenance(context: typer.Context) -> list[str]:
    """Return a line for every option that was given: `--steps 5 (from BSFIND_STEPS)`."""
    configuration: Configuration | None = context.meta.get(_META)
    lines = []
    for option in OPTIONS:
        source = context.get_parameter_source(option.name)
        if source is None or option.name not in context.params:
            continue
        origin = {
            "COMMANDLINE": "the command line",
            "ENVIRONMENT": option.variable,
            "DEFAULT_MAP": configuration.source(option.name) if configuration else None,
        }.get(source.name)
        if origin is not None:
            value, write = context.params[option.name], option.kind.write
            text = " ".join(map(write, value)) if option.kind.repeats else write(value)
            lines.append(f"{option.flag} {text} (from {origin})")
    return lines

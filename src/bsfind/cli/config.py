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
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from bsfind.cli.options import OPTIONS
from bsfind.errors import UsageError
from bsfind.option_types import INPUT_SHAPE, OptionType
from bsfind.units import brief, format_bytes

_TABLE = "[tool.bsfind]"
_CONFIGURABLE = {option.key: option for option in OPTIONS if option.is_in_file}
"""The options that may stand in a file. One file serves all commands: each takes the options that it has."""

_LARGEST_FILE = 16 << 20

_META = "bsfind.sources"
"""The key of the context's `meta` under which is where each option of the configuration file stands."""


def configure(context: typer.Context, profile: str | None) -> None:
    """Make the nearest configuration file the defaults of a command.

    Args:
        context: of the command, whose options are not read yet.
        profile: the name of the profile to use; None: none.

    Raises:
        UsageError: see `read_configuration`.
    """
    options, context.meta[_META] = read_configuration(profile)
    ours = {parameter.name for parameter in context.command.params}
    context.default_map = {name: value for name, value in options.items() if name in ours}


def read_configuration(profile: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options of the nearest `[tool.bsfind]`, those of a profile in place of the general ones.

    Args:
        profile: the name of the profile; None: none.

    Returns:
        The options by parameter name (`input_shape`), and the file and the table that each is from.

    Raises:
        UsageError: the file is not TOML, an unknown key or profile, or a value that no option takes.
    """
    file, table = _nearest_table()
    if file is None:
        if profile is None:
            return {}, {}
        raise UsageError(
            f"there is no profile `{brief(profile)}`: no pyproject.toml here or above has a [tool.bsfind]",
            hint=f"write one as `{_profile_table(profile)}`, its options below",
        )
    profiles = table.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UsageError(
            f"`profiles` in {_TABLE} of `{file}` must contain only tables",
            hint="write a profile as `[tool.bsfind.profiles.NAME]`, its options below",
        )
    options = _read_table(table, file, _TABLE)
    sources = dict.fromkeys(options, f"{file.name} {_TABLE}")
    overrides = {
        # Every profile is checked, so that typos surface early.
        name: _read_table(entries, file, _profile_table(name))
        for name, entries in profiles.items()
    }
    if profile is not None:
        if profile not in overrides:
            raise _unknown_profile(profile, overrides, file)
        options |= overrides[profile]
        sources |= dict.fromkeys(overrides[profile], f"{file.name} {_profile_table(profile)}")
    return options, sources


def profile_names() -> list[str]:
    """Return the names of the profiles in the nearest configuration file.

    Raises:
        UsageError: not TOML.
    """
    profiles = _nearest_table()[1].get("profiles", {})
    return sorted(profiles) if isinstance(profiles, dict) else []


def _nearest_table() -> tuple[Path | None, dict[str, Any]]:
    """Return the nearest pyproject.toml that has a `tool.bsfind`, here or above, and that table.

    Raises:
        UsageError: the nearest that names it cannot be read, is not TOML, or has something else there.
    """
    try:
        folder = Path.cwd()
    except OSError:  # the current folder was deleted
        return None, {}
    for place in (folder, *folder.parents):
        file = place / "pyproject.toml"
        tool = _load(file).get("tool", {}) if os.path.isfile(file) else {}  # noqa: PTH113 (PermissionError)
        if isinstance(tool, dict) and "bsfind" not in tool:
            continue
        table = tool["bsfind"] if isinstance(tool, dict) else tool
        if not isinstance(table, dict):
            raise UsageError(
                f"`tool.bsfind` in `{file}` is not a table",
                hint=f"write {_TABLE}, and `KEY = VALUE` below",
            )
        return file, table
    return None, {}


def _load(file: Path) -> dict[str, Any]:
    """Return the content of a TOML file; of one that is certain not to name bsfind, nothing."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read `{file}`: {error.strerror or error}") from None
    if len(data) > _LARGEST_FILE:
        raise UsageError(f"`{file}` has more than {format_bytes(_LARGEST_FILE)}")
    names_it = b"bsfind" in data.replace(b"\0", b"")  # in UTF-16 too, which is not TOML
    if not names_it and b"\\" not in data:  # a key could be written with escapes: "bsf\u0069nd"
        return {}
    try:
        import tomllib as toml
    except ModuleNotFoundError:  # Python 3.10
        try:
            import tomli as toml  # type: ignore[no-redef,import-not-found,unused-ignore]
        except ModuleNotFoundError:
            if not names_it:
                return {}
            raise UsageError(
                f"`{file}` has a [tool.bsfind], which Python 3.10 needs `tomli` to read",
                hint="`pip install tomli`",
            ) from None
    try:
        return toml.loads(data.decode("utf-8-sig"))
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        why = brief(error)
    except RecursionError:
        why = "arrays or tables in it are nested too deep"
    except ValueError:
        why = "a number in it has thousands of digits"
    if not names_it:
        return {}
    raise UsageError(f"`{file}` is not valid TOML: {why}")


def _profile_table(profile: str) -> str:
    return f"[tool.bsfind.profiles.{brief(profile)}]"


def _unknown_profile(profile: str, known: Collection[str], file: Path) -> UsageError:
    message = f"there is no profile `{brief(profile)}` in `{file}`"
    nearest = difflib.get_close_matches(profile, sorted(known), n=1, cutoff=0.5)
    if nearest:
        return UsageError(message, hint=f"did you mean `--profile {nearest[0]}`?")
    if known:
        return UsageError(
            message, hint=f"it has {', '.join(f'`{name}`' for name in sorted(known))}"
        )
    return UsageError(message, hint=f"write one as `{_profile_table(profile)}`, its options below")


def _read_table(table: dict[str, Any], file: Path, where: str) -> dict[str, Any]:
    """Return the options of one table by parameter name.

    Raises:
        UsageError: an unknown key, or a value that its option does not take; names file, table and key.
    """
    options: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in _CONFIGURABLE:
            candidates = sorted(_CONFIGURABLE) + (["profiles"] if where == _TABLE else [])
            nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.65)
            hint = f"did you mean `{nearest[0]}`?" if nearest else "`bsfind run --help` lists them"
            raise UsageError(f"`{file}` has an unknown key `{brief(key)}` in {where}", hint=hint)
        option = _CONFIGURABLE[name]
        if option.name in options:
            raise UsageError(f"`{file}` has the key `{name}` twice in {where}")
        try:
            options[option.name] = _read(value, option.kind)
        except (ValueError, UsageError) as error:
            told = error if isinstance(error, UsageError) else UsageError(str(error))
            raise told.about(f"`{key}` in {where} of `{file}`") from None
    return options


def _read(value: Any, kind: OptionType) -> Any:
    """Return the value of an option, read from what TOML makes of it.

    Raises:
        ValueError: not a value of this type.
    """
    if not kind.repeats:
        return kind.read(value)
    if kind is INPUT_SHAPE:  # `input-shape = [3, 224, 224]` is one shape
        is_one = (
            isinstance(value, list) and value and not any(isinstance(v, (str, list)) for v in value)
        )
        shapes = value if isinstance(value, list) and not is_one else [value]
        value = [",".join(map(str, s)) if isinstance(s, list) else str(s) for s in shapes]
    return [kind.read(item) for item in (value if isinstance(value, list) else [value])]


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
    lines = []
    for option in {option.name: option for option in OPTIONS}.values():
        source = context.get_parameter_source(option.name)
        if source is None or option.name not in context.params:
            continue
        origin = {
            "COMMANDLINE": "the command line",
            "ENVIRONMENT": option.variable,
            "DEFAULT_MAP": context.meta.get(_META, {}).get(option.name),
        }.get(source.name)
        if origin is not None:
            value, write = context.params[option.name], option.kind.write
            text = " ".join(map(write, value)) if option.kind.repeats else write(value)
            lines.append(f"{option.flag} {text} (from {origin})")
    return lines

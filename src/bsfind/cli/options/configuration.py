"""Where defaults come from: panel Configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bsfind.cli.options import completion
from bsfind.cli.options.option import option

CONFIGURATION = "bsfind.configuration"
"""The key of the context's `meta` under which the `Configuration` is, where there is a file."""

_NOT_OPTIONS = frozenset(("target", "export", "batch_size", "profile", "help"))
"""Parameters that say what one invocation is about: they do not stand in a file."""


def _configure(context: typer.Context, profile: str | None) -> str | None:
    """Read the configuration file and make it this command's defaults.

    A callback of an eager option: it runs before any other option is given its value.

    Raises:
        UsageError: see `read_configuration`; or a profile is asked for and there is no file.
    """
    if context.resilient_parsing:  # the shell asks for completions
        return profile
    from bsfind.cli.configuration import find_configuration, read_configuration
    from bsfind.errors import UsageError

    file = find_configuration(Path.cwd())
    if file is None:
        if profile is not None:
            raise UsageError(
                f"there is no profile `{profile}`: no pyproject.toml here or above has a [tool.bsfind]",
                hint=f"write one as `[tool.bsfind.profiles.{profile}]`, its options below",
            )
        return profile
    found = read_configuration(file, _names(context), profile)
    ours = {parameter.name for parameter in context.command.params}
    context.default_map = {name: value for name, value in found.options.items() if name in ours}
    context.meta[CONFIGURATION] = found
    return profile


def _names(context: typer.Context) -> set[str]:
    """Return the options that may stand in a file: those of all commands that read one.

    One file serves all of them: what only the other commands know is no mistake.
    """
    group: Any = context.parent.command if context.parent else None
    commands = group.commands.values() if group else [context.command]
    names: set[str] = set()
    for command in commands:
        own = {parameter.name for parameter in command.params}
        if "profile" in own:
            names |= {name.replace("_", "-") for name in own - _NOT_OPTIONS}
    return names


Profile = Annotated[
    str | None,
    option(
        "--profile",
        panel="Configuration",
        is_eager=True,
        callback=_configure,
        autocompletion=completion.profiles,
        metavar="NAME",
        help="Use the options of `[tool.bsfind.profiles.NAME]` in the nearest pyproject.toml.",
    ),
]

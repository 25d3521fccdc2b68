"""Where the options of a command line have their values from (`--verbose`)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import typer

from bsfind.cli.configuration import Configuration
from bsfind.cli.options.configuration import CONFIGURATION
from bsfind.units import exact_size, plain_number

_SIZES = ("memory_limit", "context_memory")
_DURATIONS = ("trial_timeout", "time_budget")


def tell_provenance(context: typer.Context) -> None:
    """Print, if the command is to be verbose, every option that is not at its default."""
    if not context.params["verbose"]:
        return
    lines = provenance(context)
    if lines:
        from bsfind.cli.console import Terminal  # `--help` goes without it

        terminal = Terminal(color=_text("color", context.params["color"]))
        for line in lines:
            terminal.note(line)


def given_options(context: typer.Context) -> frozenset[str]:
    """Return the names of the parameters that the command line, a variable or a file gave."""
    return frozenset(
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and source.name != "DEFAULT"
    )


def provenance(context: typer.Context) -> list[str]:
    """Return a line for every option that was given: `--steps 5 (from BSFIND_STEPS)`."""
    configuration: Configuration | None = context.meta.get(CONFIGURATION)
    lines = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if parameter.param_type_name != "option" or source is None or name not in context.params:
            continue
        origin = {
            "COMMANDLINE": "the command line",
            "ENVIRONMENT": str(parameter.envvar),
            "DEFAULT_MAP": configuration.source(name) if configuration else None,
        }.get(source.name)
        if origin is not None:
            flag = next(flag for flag in parameter.opts if flag.startswith("--"))
            lines.append(f"{flag} {_text(name, context.params[name])} (from {origin})")
    return lines


def _text(name: str, value: Any) -> str:
    """Write a parsed value as it could be given on the command line."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if name in _SIZES:
        return exact_size(value)
    if name in _DURATIONS:
        return f"{plain_number(value)}s"
    if name == "tolerance":
        return f"{plain_number(value * 100)}%"
    if isinstance(value, Sequence) and not isinstance(value, str):
        pairs = [item if isinstance(item, tuple) else None for item in value]
        if value and all(pairs):
            return " ".join("=".join(map(str, pair)) for pair in pairs if pair)
        separator = " " if isinstance(value, list) else ","
        return separator.join(map(str, value))
    return str(value)

"""Writes docs/cli.md, the reference of the command line, from the declarations of the options.

    python docs/build_reference.py

A test compares the file with what this makes: after a change of an option, run it again.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo, ParameterInfo

from bsfind.cli.main import app
from bsfind.errors import ExitCode

__all__ = ["PAGE", "reference"]

PAGE = Path(__file__).parent / "cli.md"

_INTRODUCTION = """\
# The command line

Written by `docs/build_reference.py` from the options themselves; `bsfind COMMAND --help` shows the same.

An option of `run` and `check` can be given on the command line, by its environment variable, in a profile
of the nearest `pyproject.toml` (`[tool.bsfind.profiles.NAME]`, chosen with `--profile NAME`), or there for
all (`[tool.bsfind]`); the first of these that has it wins. `-v` shows where each value is from. Options
that may be repeated take a list in a file, and values between spaces in a variable.

Sizes: `24GiB` is binary, `24GB` decimal, a plain number bytes. Durations: `90s`, `10m`, `1h`, a plain
number seconds.
"""

_EXIT_CODES = {
    ExitCode.OK: "a batch size is recommended; `check`: it fits; `explain`: there is an error",
    ExitCode.DOES_NOT_FIT: "the answer is no",
    ExitCode.USAGE: "usage or configuration error",
    ExitCode.NO_DEVICE: "no usable GPU, and none named with `--gpu`",
    ExitCode.TARGET_FAILED: "the model's code failed, and no precision gave an answer",
    ExitCode.STOPPED_EARLY: "stopped early by a limit",
    ExitCode.INTERNAL: "a bug in bsfind",
    ExitCode.HUNG_UP: "the terminal went away",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "terminated",
}


def reference() -> str:
    """Return the page."""
    parts = [_INTRODUCTION]
    for command in app.registered_commands:
        assert command.callback is not None
        parts.append(_command(str(command.name), command.callback))
    parts.append(_general())
    return "\n".join(parts)


def _command(name: str, function: Callable[..., Any]) -> str:
    infos = [info for _, info, _ in _parameters(function)]
    arguments = [info for info in infos if not isinstance(info, OptionInfo)]
    usage = " ".join(["bsfind", name, *map(_argument, arguments)])
    if len(arguments) < len(infos):
        usage += " [OPTIONS]"
    parts = [f"## `{usage}`\n", _description(inspect.getdoc(function) or "")]
    parts += [f"`{info.metavar}`: {_cell(info.help)}\n" for info in arguments]
    panels: dict[str, list[str]] = {}
    for kind, info, default in _parameters(function):
        if isinstance(info, OptionInfo):
            panel = info.rich_help_panel if isinstance(info.rich_help_panel, str) else ""
            panels.setdefault(panel, []).append(_row(kind, info, default))
    for panel, rows in panels.items():
        parts.append(f"### {panel}\n" if panel else "")
        parts.append(
            "| option | default | variable | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(part for part in parts if part)


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[Any, ParameterInfo, Any]]:
    """Yield type, declaration and default of each option and argument."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] is not typer.Context:
            kind, info = get_args(hints[name])
            yield kind, info, parameter.default


def _argument(info: ParameterInfo) -> str:
    return f"[{info.metavar}]" if "-" in str(info.metavar) else str(info.metavar)


def _description(docstring: str) -> str:
    """Return a docstring as Markdown: its examples are code."""
    blocks = []
    for block in docstring.split("\n\n"):
        is_example = re.match(r"bsfind |BS=", block)
        blocks.append(f"```sh\n{block}\n```" if is_example else " ".join(block.split()))
    return "\n\n".join(blocks) + "\n"


def _row(kind: Any, info: OptionInfo, default: Any) -> str:
    # Within `Annotated`, Typer keeps the first flag where a default would be.
    flags = [str(info.default), *(info.param_decls or ())]
    value = _metavar(kind, info)
    option = ", ".join(f"`{flag} {value}`" if value else f"`{flag}`" for flag in flags)
    variable = f"`{info.envvar}`" if info.envvar else ""
    return f"| {_cell(option)} | {_default(default)} | {variable} | {_cell(info.help)} |"


def _metavar(kind: Any, info: OptionInfo) -> str:
    if info.metavar:
        return info.metavar
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(member.value for member in kind)
    return "" if kind is bool else "VALUE"


def _default(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value in (None, False, "") or value is inspect.Parameter.empty:
        return "required" if value is inspect.Parameter.empty else ""
    return f"`{value}`"


def _cell(text: str | None) -> str:
    """Escape what would end a cell of a table."""
    plain = re.sub(r"\s*\[default: ([^]]*)\]", r" Default: \1.", " ".join((text or "").split()))
    return plain.replace("|", "\\|")


def _general() -> str:
    codes = "\n".join(f"| {int(code)} | {text} |" for code, text in _EXIT_CODES.items())
    return (
        "## `bsfind`\n\n"
        "| option | |\n|---|---|\n"
        "| `--version`, `-V` | Print the version. |\n"
        "| `--install-completion` | Install completion for the current shell. |\n"
        "| `--show-completion` | Show completion for the current shell, to copy it or customize it. |\n"
        "| `--help`, `-h` | Show the help; after a command, its help. |\n\n"
        "`NO_COLOR` and `FORCE_COLOR` switch colours off and on; `COLUMNS` sets the width of tables.\n\n"
        f"| exit | meaning |\n|---|---|\n{codes}\n"
    )


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")

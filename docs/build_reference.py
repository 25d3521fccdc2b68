"""Writes docs/cli.md, the reference of the command line, from the declarations of the options.

    python docs/build_reference.py

A test compares the file with what this makes: after a change of an option, run it again.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import typer

from bsfind.cli.main import app
from bsfind.errors import ExitCode

PAGE = Path(__file__).parent / "cli.md"

_INTRODUCTION = """\
# The command line

Written by `docs/build_reference.py` from the options themselves; `bsfind COMMAND --help` shows the same.

An option of `run`, `launch`, `check` and `inspect` can be given on the command line, by its environment
variable, in a profile of the nearest `pyproject.toml` (`[tool.bsfind.profiles.NAME]`, chosen with
`--profile NAME`), or there for all (`[tool.bsfind]`); the first of these that has it wins. `-v` shows where
each value is from. Options that may be repeated take a list in a file, and values separated by spaces in a
variable. In a file, a flag is `true` or `false`, and a number is one of TOML's or the text of the command
line.

Sizes: `24GiB` is binary, `24GB` decimal, a plain number bytes; at most 1024 TiB. Durations: `90s`, `10m`,
`1h`, a plain number seconds; from 1 ms to 8760 h. Batch sizes: at most 2,147,483,647; steps and GPUs: at most
1,000,000.
"""

_EXIT_CODES = {
    ExitCode.OK: "a batch size is recommended; `check`: it fits; `explain`: there is an error",
    ExitCode.DOES_NOT_FIT: "the answer is no",
    ExitCode.USAGE: "usage or configuration error",
    ExitCode.NO_DEVICE: "no usable GPU, and none named with `--gpu`",
    ExitCode.TARGET_FAILED: "the code of the model or the command failed, and no row has an answer",
    ExitCode.STOPPED_EARLY: "stopped early by a limit",
    ExitCode.INTERNAL: "a bug in bsfind",
    ExitCode.HUNG_UP: "the terminal went away",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "terminated",
}


def reference() -> str:
    """Return the page."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [_INTRODUCTION, *(_command(name, command) for name, command in commands.items())]
    return "\n".join([*parts, _general()])


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(["bsfind", name, *(_argument(a) for a in arguments if a.nargs == 1)])
    if options:
        usage += " [OPTIONS]"
    usage += "".join(f" -- {_argument(a)}…" for a in arguments if a.nargs != 1)
    parts = [f"## `{usage}`\n", _description(inspect.getdoc(command.callback) or "")]
    parts += [f"`{argument.metavar}`: {_cell(argument.help)}\n" for argument in arguments]
    panels: dict[str, list[str]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or "", []).append(_row(option))
    for panel, rows in panels.items():
        parts.append(f"### {panel}\n" if panel else "")
        parts.append(
            "| option | default | variable | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(part for part in parts if part)


def _argument(argument: Any) -> str:
    return f"[{argument.metavar}]" if "-" in argument.metavar else str(argument.metavar)


def _description(docstring: str) -> str:
    """Return a docstring as Markdown: its examples are code."""
    blocks = []
    for block in docstring.split("\n\n"):
        is_example = re.match(r"bsfind |BS=", block)
        blocks.append(f"```sh\n{block}\n```" if is_example else " ".join(block.split()))
    return "\n\n".join(blocks) + "\n"


def _row(option: Any) -> str:
    value = "" if option.is_flag else option.metavar
    flags = ", ".join(f"`{flag} {value}`" if value else f"`{flag}`" for flag in option.opts)
    variable = f"`{option.envvar}`" if option.envvar else ""
    return f"| {_cell(flags)} | {_default(option)} | {variable} | {_cell(option.help)} |"


def _default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default in (None, False, "") else f"`{option.default}`"


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

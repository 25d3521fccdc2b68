"""The entry point: commands, signals, and the only place where errors become exit codes."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bsfind import __version__
from bsfind.cli import streams
from bsfind.cli.commands.check import check
from bsfind.cli.commands.diff import diff
from bsfind.cli.commands.env import env
from bsfind.cli.commands.explain import explain
from bsfind.cli.commands.gpus import gpus
from bsfind.cli.commands.inspect import inspect as inspect_command
from bsfind.cli.commands.launch import launch
from bsfind.cli.commands.run import run
from bsfind.cli.commands.schema import schema
from bsfind.errors import BsfindError, ExitCode, InternalError, Terminated, UsageError
from bsfind.units import brief

_EPILOG = (
    "Exit codes: 0 a batch size is recommended, 1 nothing fits, 2 usage, 3 no usable GPU, "
    "4 the model failed, 5 stopped early, 70 a bug in bsfind, 129 hung up, 130 interrupted, "
    "143 terminated."
)


class _Commands(TyperGroup):
    """The commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)
        # Typer loads pydantic to read a value that is not a bool, such as None of a missing `--help`.
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.default is None:
                parameter.default = False
        return parameters

    def get_help(self, ctx: Any) -> str:
        return streams.as_written(super().get_help(ctx))


class _Command(TyperCommand):
    """A command whose help has a heading for each panel, and the examples of its docstring line by line."""

    def get_help(self, ctx: Any) -> str:
        return streams.as_written(super().get_help(ctx))

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        for block in inspect.cleandoc(self.help or "").split("\n\n"):
            formatter.write_paragraph()
            with formatter.indentation():
                is_example = re.match(r"bsfind |BS=", block)
                for line in block.splitlines() if is_example else [" ".join(block.split())]:
                    formatter.write_text(line)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or kind
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


app = typer.Typer(
    name="bsfind",
    cls=_Commands,
    help="Find the batch size that a PyTorch model should train with on a GPU.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,  # Rich takes longer to load than all the rest
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_WIDE = {"max_content_width": 1000}  # as wide as the terminal is
_COMMANDS: dict[str, Callable[..., Any]] = {
    "run": run,
    "launch": launch,
    "check": check,
    "inspect": inspect_command,
    "diff": diff,
    "explain": explain,
    "gpus": gpus,
    "env": env,
    "schema": schema,
}
for _name, _function in _COMMANDS.items():
    _epilog = _EPILOG if _name in ("run", "launch", "check", "inspect") else None
    # The options of a launched command are its own.
    _settings = {**_WIDE, "allow_interspersed_args": _name != "launch"}
    app.command(_name, cls=_Command, epilog=_epilog, context_settings=_settings)(_function)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"bsfind {__version__}\n")
        raise typer.Exit


@app.callback()
def _bsfind(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Find the batch size that a PyTorch model should train with on a GPU."""


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def main() -> None:
    """Run the command line and leave with its exit code."""
    streams.prepare()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # not started by `bsfind.__main__`
        signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = _finished(_run())
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Terminated:
        code = ExitCode.TERMINATED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the output is complete: ignore a late Ctrl-C
    sys.exit(code)


def _run() -> int:
    try:
        result = app(standalone_mode=False)
        return result if isinstance(result, int) else ExitCode.OK
    except BsfindError as error:
        return _tell(error)
    except SystemExit as leaving:  # completion of a shell
        return leaving.code if isinstance(leaving.code, int) else ExitCode.OK
    except typer.Abort:
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Terminated:
        return ExitCode.TERMINATED
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # Click's, and Typer's copy of it
            sys.stderr.write(f"{error}\n")
            return ExitCode.USAGE
        usage = _usage_error(error)
        if usage is None:
            usage = InternalError(
                f"a bug in bsfind: {error!r}",
                detail=traceback.format_exc(),
                hint="please report it, with what `bsfind env` prints",
            )
        return _tell(usage)


def _finished(code: int) -> int:
    """Return the exit code of a command that has written its answer, as far as stdout took it."""
    try:
        streams.finish()
    except UsageError as error:
        _tell(error)
        # A failure is no less one; but a script must not go on with half of an answer.
        return ExitCode.USAGE if code in (ExitCode.OK, ExitCode.DOES_NOT_FIT) else code
    return code


def _tell(error: BsfindError) -> int:
    from bsfind.cli.console import Terminal  # `--help` works without it

    Terminal(color=_color(sys.argv)).error(error)
    return error.exit_code


def _color(argv: Sequence[str]) -> str:
    """Return when to colour an error: a wrong command line may still contain a valid `--color`."""
    asked = os.environ.get("BSFIND_COLOR", "auto")
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag == "--color":
            asked = value if equals else following
    return asked


def _usage_error(error: Exception) -> BsfindError | None:
    """Return the error that Typer raised for a wrong command line; None for any other exception.

    Click's errors are known by their methods: Typer has its own copy of Click since 0.16.
    """
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bsfind"
    message: str = error.format_message()
    # Every message names the option's variable; of use only where the value came from it.
    variable = re.search(r" \(env var: '(\w+)'\)", message)
    if variable is not None and variable[1] not in os.environ:
        message = message.replace(variable[0], "")
    message = re.sub(r"\S{101,}", lambda word: brief(word[0]), message)
    hint = f"`{command} --help` shows the options" if hasattr(error, "ctx") else ""
    return UsageError(message.strip().rstrip("."), hint=hint)

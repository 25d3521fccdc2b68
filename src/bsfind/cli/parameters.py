"""What an option of the table is, and how a row becomes a parameter of Typer.

Values are checked before torch is imported: a typo costs milliseconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer

from bsfind import option_types as types
from bsfind.errors import UsageError
from bsfind.option_fields import SETTINGS
from bsfind.option_types import OptionType

Completer = Callable[[str], list[str]]

_DEFAULT: Any = object()
"""The default is that of the setting of the same name; without one, False or None."""

REQUIRED: Any = inspect.Parameter.empty
"""The option has to be given."""


class Option:
    """A row of the table.

    Args:
        flags: as they are typed; the first that starts with `--` names the option.
        panel: the heading in the help.
        help: what it does.
        commands: which commands have it.
        metavar: what stands for the value in the help; "": the choices.
        kind: how values are read and written; by default, that of the setting of the same name.
        default: as the help shows it; by default, that of the setting of the same name.
        complete: completes a value in the shell; by default, the choices.
        is_in_file: whether it can stand in `[tool.bsfind]`: not what one invocation is about.
        shows_default: whether the help shows the default.
        typer: further arguments of `typer.Option`.

    Attributes:
        flag: the long flag.
        key: its name in a configuration file: `input-shape`.
        name: the name of the parameter: `input_shape`.
        variable: the environment variable.
    """

    def __init__(
        self,
        *flags: str,
        panel: str,
        help: str,
        commands: Iterable[str],
        metavar: str = "",
        kind: OptionType | None = None,
        default: Any = _DEFAULT,
        complete: Completer | None = None,
        is_in_file: bool = True,
        shows_default: bool = True,
        **typer: Any,
    ) -> None:
        self.flag = next(flag for flag in flags if flag.startswith("--"))
        self.key = self.flag.removeprefix("--")
        self.name = self.key.replace("-", "_")
        self.variable = f"BSFIND_{self.name.upper()}"
        setting = SETTINGS.get(self.name)
        self.kind = kind or SETTINGS[self.name].kind
        self.default = default
        if default is _DEFAULT:
            bare = False if kind is types.FLAG else None
            self.default = setting.shown_default if setting is not None else bare
        if self.kind.choices and complete is None:
            complete = (names if self.kind.is_list else one_of)(self.kind.choices)
        self.commands = frozenset(commands)
        self.is_in_file = is_in_file
        self._flags = flags
        self._typer = {
            "rich_help_panel": panel,
            "help": help,
            "envvar": self.variable,
            "metavar": metavar or "|".join(self.kind.choices) or None,
            "show_default": shows_default,
            "autocompletion": complete,
            **typer,
        }

    def parameter(self) -> inspect.Parameter:
        """Return the option as a parameter of a function that Typer makes a command of."""
        annotation: Any = bool
        arguments = self._typer
        if self.kind is not types.FLAG:
            one: Any = str if self.default is not None else str | None
            annotation = list[str] | None if self.kind.repeats else one
            arguments = {**arguments, "parser": reader(self.kind, self.flag)}
        info = typer.Option(*self._flags, **arguments)
        return _parameter(self.name, Annotated[annotation, info], self.default)


def reader(kind: OptionType, name: str) -> Callable[[Any], Any]:
    """Return the reader of a type as Typer wants it: its message reaches the user, and names the option."""

    def read(value: Any) -> Any:
        # Typer passes values that are read already through here too.
        if not isinstance(value, str):
            return value
        try:
            return kind.read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        except UsageError as error:
            raise error.about(f"`{name}`") from None

    return read


def _parameter(name: str, annotation: Any, default: Any = REQUIRED) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


_TARGET = Annotated[
    str,
    typer.Argument(
        parser=reader(types.IMPORT_PATH, "TARGET"),
        metavar="TARGET",
        help="The model: `package.module:attr` or `path/file.py:attr`, a class, a function or an instance; "
        "or `timm:NAME`, `torchvision:NAME`, `hf:NAME`.",
        show_default=False,
    ),
]

TARGET = _parameter("target", _TARGET)
"""The argument of the commands about a model."""

COMMAND = _parameter(
    "command",
    Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND",
            help="The command that trains, with `{batch_size}` where its batch size stands; after `--`.",
            show_default=False,
        ),
    ],
)
"""The argument of `launch`."""

Body = Callable[[dict[str, Any], frozenset[str]], int]


def command(
    options: Sequence[Option], argument: inspect.Parameter = TARGET
) -> Callable[[Body], Callable[..., int]]:
    """Make a command with an argument and options of a function.

    The function is called with the values by the names of the options and of the argument, and with the
    names of those that the command line, a variable or a file gave. Its docstring is the help.
    """

    def decorated(body: Body) -> Callable[..., int]:
        def run(context: typer.Context, **_: Any) -> int:
            from bsfind.cli.config import given_options, tell_provenance

            tell_provenance(context)
            return body(context.params, given_options(context))

        own = (_parameter("context", typer.Context), argument)
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*own, *(option.parameter() for option in options)]
        )
        run.__doc__ = body.__doc__
        return run

    return decorated


# ----------------------------------------------------------------------------------- completion
# Values are completed in a process of their own each time, so nothing is imported before it is needed.


def one_of(choices: Sequence[str]) -> Completer:
    """Complete one of several values."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def names(choices: Sequence[str]) -> Completer:
    """Complete the last of several names between commas; none is offered twice."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        taken = before.split(",")
        left = [choice for choice in choices if choice not in taken and choice.startswith(last)]
        return [f"{before}{comma}{choice}" for choice in left]

    return complete


def gpus(incomplete: str) -> list[str]:
    """Complete the short name of the last GPU of a list."""
    from bsfind.simulation.gpus.catalogue import known_gpus

    return names([*(gpu.key for gpu in known_gpus()), types.ALL_GPUS])(incomplete.lower())


def profiles(incomplete: str) -> list[str]:
    """Complete a profile of the nearest configuration file."""
    from bsfind.cli.config import profile_names

    try:
        found = profile_names()
    except UsageError:  # not TOML: stay silent here, the command reports it
        found = []
    return [name for name in found if name.startswith(incomplete) and name.isprintable()]


def configure(context: typer.Context, profile: str | None) -> str | None:
    """Read the configuration file: the callback of `--profile`, which runs before other options are read."""
    if context.resilient_parsing:  # the shell asks for completions
        return profile
    from bsfind.cli import config

    config.configure(context, profile)
    return profile

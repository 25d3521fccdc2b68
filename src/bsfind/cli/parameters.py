"""What an option of the table is, and how a row becomes a parameter of Typer.

Values are checked before torch is imported: a typo costs milliseconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bsfind import option_types as types
from bsfind.option_types import OptionType
from bsfind.settings import SETTINGS

Completer = Callable[[str], list[str]]

_DEFAULT: Any = object()
"""The default is that of the setting of the same name; without one, False or None."""

REQUIRED: Any = inspect.Parameter.empty
"""The option has to be given."""


@dataclass(frozen=True)
class Option:
    """A row of the table.

    Attributes:
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
    """

    flags: tuple[str, ...]
    panel: str
    help: str
    commands: frozenset[str]
    metavar: str
    kind: OptionType
    default: Any
    complete: Completer | None
    is_in_file: bool
    shows_default: bool
    typer: dict[str, Any] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """The long flag."""
        return next(flag for flag in self.flags if flag.startswith("--"))

    @property
    def key(self) -> str:
        """The name in a configuration file: `input-shape`."""
        return self.flag.removeprefix("--")

    @property
    def name(self) -> str:
        """The name of the parameter: `input_shape`."""
        return self.key.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"BSFIND_{self.name.upper()}"

    def parameter(self) -> inspect.Parameter:
        """Return the option as a parameter of a function that Typer makes a command of."""
        annotation, how = self._as_typer_has_it()
        arguments: dict[str, Any] = {
            "rich_help_panel": self.panel,
            "help": self.help,
            "envvar": self.variable,
            "metavar": self.metavar or None,
            "show_default": self.shows_default,
            "autocompletion": self.complete,
            **how,
            **self.typer,
        }
        info = typer.Option(*self.flags, **arguments)
        return _parameter(self.name, Annotated[annotation, info], self.default)

    def _as_typer_has_it(self) -> tuple[Any, dict[str, Any]]:
        """Return the type, and how a value is read."""
        kind, has_default = self.kind, self.default is not None
        if kind is types.FLAG:
            return bool, {}
        if kind.least is not None:
            return (int if has_default else int | None), {"min": kind.least}
        if kind.repeats:
            return list[str] | None, {"parser": reader(kind)}
        return (str if has_default else str | None), {"parser": reader(kind)}


def option(
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
) -> Option:
    """Return a row of the table; kind and default are by default those of the setting of the same name."""
    name = next(flag for flag in flags if flag.startswith("--")).removeprefix("--")
    setting = SETTINGS.get(name.replace("-", "_"))
    if kind is None and setting is not None:
        kind = setting.kind
    assert kind is not None, name
    if default is _DEFAULT and setting is not None:
        default = setting.shown_default
    elif default is _DEFAULT:
        default = False if kind is types.FLAG else None
    if kind.choices and complete is None:
        complete = names(kind.choices) if kind.is_list else one_of(kind.choices)
    return Option(
        flags,
        panel,
        help,
        frozenset(commands),
        metavar or "|".join(kind.choices),
        kind,
        default,
        complete,
        is_in_file,
        shows_default,
        typer,
    )


def reader(kind: OptionType) -> Callable[[Any], Any]:
    """Return the reader of a type as Typer wants it: its message reaches the user."""

    def read(value: Any) -> Any:
        # Typer passes values that are read already through here too.
        if not isinstance(value, str):
            return value
        try:
            return kind.read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return read


def _parameter(name: str, annotation: Any, default: Any = REQUIRED) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


_TARGET = Annotated[
    str,
    typer.Argument(
        parser=reader(types.IMPORT_PATH),
        metavar="TARGET",
        help="The model: `package.module:attr` or `path/file.py:attr`; a class, a function or an instance.",
        show_default=False,
    ),
]

Body = Callable[[dict[str, Any], frozenset[str]], int]


def command(options: Sequence[Option]) -> Callable[[Body], Callable[..., int]]:
    """Make a command with a target and options of a function.

    The function is called with the values by the options' names (the target's is `target`), and with the
    names of those that the command line, a variable or a file gave. Its docstring is the help.
    """

    def decorated(body: Body) -> Callable[..., int]:
        def run(context: typer.Context, **_: Any) -> int:
            from bsfind.cli.config import given_options, tell_provenance

            tell_provenance(context)
            return body(context.params, given_options(context))

        own = (_parameter("context", typer.Context), _parameter("target", _TARGET))
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
    """Complete the short name of a known GPU."""
    from bsfind.simulation.gpus.catalogue import known_gpus

    return [gpu.key for gpu in known_gpus() if gpu.key.startswith(incomplete.lower())]


def profiles(incomplete: str) -> list[str]:
    """Complete a profile of the nearest configuration file."""
    from bsfind.cli.config import find_configuration, profile_names
    from bsfind.errors import UsageError

    try:
        file = find_configuration(Path.cwd())
        found = profile_names(file) if file else []
    except UsageError:  # not TOML: stay silent here, the command reports it
        found = []
    return [name for name in found if name.startswith(incomplete)]


def configure(context: typer.Context, profile: str | None) -> str | None:
    """Read the configuration file: the callback of `--profile`, which runs before other options are read."""
    if context.resilient_parsing:  # the shell asks for completions
        return profile
    from bsfind.cli import config

    config.configure(context, profile)
    return profile

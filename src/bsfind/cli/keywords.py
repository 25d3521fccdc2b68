"""The options of a command as keyword arguments of Python: the same names, defaults and readers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, get_args, get_type_hints

import typer
from typer.models import ParameterInfo

from bsfind.cli.configuration import REPEATABLE, as_text
from bsfind.errors import UsageError


def read_keywords(command: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command as its command line would have parsed them.

    Args:
        command: the function that is the command.
        values: by parameter name: texts as on the command line, or numbers, booleans and sequences.
            None stands for the default.

    Raises:
        UsageError: a value that the option does not take.
    """
    options: dict[str, Any] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "context":
            continue
        value = values.get(name)
        if value is None:
            value = parameter.default
        kind, info = get_args(hints[name])
        options[name] = None if value is None else _read(name, kind, info, value)
    return options


def _read(name: str, kind: Any, info: ParameterInfo, value: Any) -> Any:
    is_repeatable = name.replace("_", "-") in REPEATABLE
    text = as_text(value.value if isinstance(value, Enum) else value, is_repeatable=is_repeatable)
    try:
        if is_repeatable:
            return [_read_one(kind, info, item) for item in text]
        return _read_one(kind, info, text)
    except typer.BadParameter as error:
        raise UsageError(f"`{name}`: {error.message}") from None
    except ValueError as error:
        raise UsageError(f"`{name}`: {error}") from None


def _read_one(kind: Any, info: ParameterInfo, text: Any) -> Any:
    """Read one text as Typer does, by the option's parser or else by its type."""
    if info.parser is not None:
        return info.parser(text)
    (kind, *_) = [part for part in get_args(kind) if part is not type(None)] or [kind]
    if kind is bool:
        if not isinstance(text, bool):
            raise ValueError(f"`{text}` is neither True nor False")
        return text
    if kind is int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"`{text}` is not an integer") from None
        if info.min is not None and number < info.min:
            raise ValueError(f"{number} is less than {info.min:g}")
        return number
    if issubclass(kind, Enum) and text not in [member.value for member in kind]:
        raise ValueError(f"`{text}` is not one of {', '.join(member.value for member in kind)}")
    return kind(text)

"""The types of option values: how a value is read, from a text or from Python, and written as text.

The command line, the Python functions and the line that reproduces a search use the same types. A reader
raises ValueError with a message that says what to write; nothing here imports what a value names.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bsfind import units
from bsfind.import_path import is_import_path, parse_import_path
from bsfind.inputs import parse_input, parse_input_shape


@dataclass(frozen=True)
class OptionType:
    """What the value of an option can be.

    Attributes:
        read: returns the value that a text stands for, or a Python value, checked.
        write: returns a text from which `read` makes the same value.
        show: returns the text of a default value; None: what `write` returns.
        repeats: the option can be given several times; its value is a tuple of what `read` returns.
        least: the smallest number, where the type is an integer.
        choices: the names that a value can be, or be made of, where there are few.
        is_list: the value is several names, separated by commas.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], str] = str
    show: Callable[[Any], str] | None = None
    repeats: bool = False
    least: int | None = None
    choices: tuple[str, ...] = ()
    is_list: bool = False

    def shown(self, default: Any) -> Any:
        """Return a default as help and signatures show it: a number, a flag, or a text."""
        if self.repeats:
            return None
        if default is None or isinstance(default, int):
            return default
        return (self.show or self.write)(default)


def integer(least: int) -> OptionType:
    """Return the type of integers that are not less than `least`."""

    def read(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            raise ValueError(f"`{value}` is not an integer") from None
        if number < least:
            raise ValueError(f"{number} is less than {least}")
        return number

    return OptionType(read, least=least)


def choice(*choices: str) -> OptionType:
    """Return the type of a name among a few."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"`{value}` is not one of {', '.join(choices)}")
        return str(value)

    return OptionType(read, choices=choices)


def names(choices: Sequence[str], unknown: str, none: str = "") -> OptionType:
    """Return the type of several names: separated by commas, or a sequence; each counts once.

    Args:
        choices: the names.
        unknown: what is said of another one.
        none: what is said where there is none; "": an empty list is valid.
    """

    def read(value: Any) -> tuple[str, ...]:
        given = value.split(",") if isinstance(value, str) else map(str, value)
        found = tuple(dict.fromkeys(name.strip().lower() for name in given if name.strip()))
        if none and not found:
            raise ValueError(none)
        for name in found:
            if name not in choices:
                raise ValueError(f"{unknown.format(name)}, choose from {', '.join(choices)}")
        return found

    return OptionType(read, ",".join, choices=tuple(choices), is_list=True)


def function_or(choices: Sequence[str]) -> OptionType:
    """Return the type of a name among a few, or of the import path of a function."""

    def read(value: str) -> str:
        if value not in choices and not is_import_path(value):
            raise ValueError(f"`{value}` is not one of {', '.join(choices)}, nor `pkg.mod:fn`")
        return value if value in choices else _import_path(value)

    return OptionType(read, choices=tuple(choices))


def _import_path(text: str) -> str:
    parse_import_path(text)
    return text


def _optimizer(text: str) -> str:
    if not is_import_path(text) and not text.isidentifier():
        raise ValueError(f"`{text}` is neither a name of torch.optim nor `pkg.mod:fn`")
    return _import_path(text) if is_import_path(text) else text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{value}` is neither True nor False")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ValueError(f"`{text}` is not `KEY=VALUE`")
    return key.strip(), value


def _gpu(value: Any) -> str:
    from bsfind.simulation.gpus.catalogue import find_gpu  # `--help` works without it

    return find_gpu(str(value)).key


def _or_number(
    parse: Callable[[str], Any], is_valid: Callable[[float], bool], convert: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Return a reader that takes valid numbers as they are, and parses the text of everything else."""

    def read(value: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and is_valid(value):
            return convert(value)
        return parse(str(value))

    return read


def _is_size(value: float) -> bool:
    return isinstance(value, int) and value >= 0


def _is_headroom(value: float) -> bool:
    """Tell bytes from a few of them, which were most likely meant as a percentage."""
    return _is_size(value) and not 0 < value < units.MIB


def _duration(seconds: float) -> str:
    return f"{units.plain_number(seconds)}s"


def _round_duration(seconds: float) -> str:
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else _duration(seconds)


def _percent(fraction: float) -> str:
    return f"{units.plain_number(fraction * 100)}%"


FLAG = OptionType(_flag, lambda value: "on" if value else "off")
"""True or False: on the command line, the option is there or not."""

COUNT = integer(1)
"""An integer that is at least 1."""

TEXT = OptionType(str)
"""Any text."""

IMPORT_PATH = OptionType(_import_path)
"""`pkg.mod:fn`."""

OPTIMIZER = OptionType(_optimizer)
"""A name of torch.optim, or `pkg.mod:fn`."""

KEY_VALUE = OptionType(_key_value, "=".join, repeats=True)
"""Pairs of a name and a text (see `parse_value`)."""

INPUT_SHAPE = OptionType(parse_input_shape, repeats=True)
"""Positional inputs."""

INPUT = OptionType(parse_input, repeats=True)
"""Keyword inputs."""

GPU = OptionType(_gpu)
"""The key of a GPU in the catalogue, or a size in bytes. Reading raises UsageError."""

SIZE = OptionType(_or_number(units.parse_size, _is_size, int), units.exact_size)
"""Bytes."""

DURATION = OptionType(
    _or_number(units.parse_duration, lambda value: value > 0, float),
    _duration,
    show=_round_duration,
)
"""Seconds."""

FRACTION = OptionType(
    _or_number(units.parse_fraction, lambda value: 0 <= value < 1, float), _percent
)
"""A part of one."""

HEADROOM = OptionType(
    _or_number(units.parse_headroom, _is_headroom, lambda value: units.Headroom(bytes=value))
)
"""`Headroom`: a part of the capacity, or bytes."""

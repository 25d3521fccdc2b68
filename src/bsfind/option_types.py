"""The types of option values: how a value is read, from a text or from Python, and written as text.

The command line, the configuration file, the Python functions and the line that reproduces a search use the
same types. A reader raises ValueError with a message that says what to write; nothing here imports what a
value names. Every number has a least and a greatest value, stated here.
"""

from __future__ import annotations

import math
import numbers
import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bsfind import units
from bsfind.import_path import is_import_path, parse_import_path
from bsfind.inputs import parse_input, parse_input_shape
from bsfind.units import brief

LARGEST_BATCH_SIZE = 2**31 - 1
"""Where the search ends if memory does not end it: CUDA kernels index samples with int32."""

ALL_GPUS = "all"
"""What names every GPU of the catalogue that can be simulated."""

_LARGEST_COUNT = 1_000_000
_LARGEST_SIZE = 1 << 50
_LARGEST_PORT = 65535
_SHORTEST_S, _LONGEST_S = 0.001, 365 * 24 * 3600.0


@dataclass(frozen=True)
class OptionType:
    """What the value of an option can be.

    Attributes:
        read: returns the value that a text stands for, or a Python value, checked.
        write: returns a text from which `read` makes the same value.
        show: returns the text of a default value; None: what `write` returns.
        repeats: the option can be given several times; its value is a tuple of what `read` returns.
        choices: the names that a value can be, or be made of, where there are few.
        is_list: the value is several names, separated by commas.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], str] = str
    show: Callable[[Any], str] | None = None
    repeats: bool = False
    choices: tuple[str, ...] = ()
    is_list: bool = False

    def shown(self, default: Any) -> Any:
        """Return a default as help and signatures show it: a number, a flag, or a text."""
        if self.repeats:
            return None
        if default is None or isinstance(default, int):
            return default
        if default == ():
            return None
        return (self.show or self.write)(default)


def integer(least: int, most: int) -> OptionType:
    """Return the type of integers from `least` to `most`; True and 3.0 are none."""

    def read(value: Any) -> int:
        is_number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        is_written = isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,999}\s*", value)
        if not (is_number or is_written) or not least <= int(value) <= most:
            raise ValueError(f"`{brief(value)}` is not an integer from {least:,} to {most:,}")
        return int(value)

    return OptionType(read)


def integers(least: int, most: int) -> OptionType:
    """Return the type of several integers: separated by commas, or a sequence; each counts once."""
    one = integer(least, most).read

    def read(value: Any) -> tuple[int, ...]:
        given = value.split(",") if isinstance(value, str) else value
        if isinstance(given, bytes) or not isinstance(given, Iterable):
            given = (given,)
        found = tuple(dict.fromkeys(one(number) for number in given))
        if not found:
            raise ValueError("no number is named")
        return found

    return OptionType(read, lambda numbers: ",".join(map(str, numbers)))


def of_text(
    read: Callable[[str], Any], write: Callable[[Any], str] = str, **more: Any
) -> OptionType:
    """Return a type whose values are texts (or paths), and nothing else of Python's."""

    def read_text(value: Any) -> Any:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not isinstance(text, str):
            raise ValueError(f"`{brief(value)}` is not a text")
        if "\0" in text:
            raise ValueError("a text with a NUL character")
        return read(text)

    return OptionType(read_text, write, **more)


def choice(*choices: str) -> OptionType:
    """Return the type of a name among a few."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"`{brief(text)}` is not one of {', '.join(choices)}")
        return text

    return of_text(read, choices=choices)


def names(choices: Sequence[str], unknown: str, none: str = "") -> OptionType:
    """Return the type of several names: separated by commas, or a sequence; each counts once.

    Args:
        choices: the names.
        unknown: what is said of another one.
        none: what is said where there is none; "": an empty list is valid.
    """

    def read(value: Any) -> tuple[str, ...]:
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"`{brief(value)}` is neither a text nor several")
        found = tuple(dict.fromkeys(name.strip().lower() for name in given if name.strip()))
        if none and not found:
            raise ValueError(none)
        for name in found:
            if name not in choices:
                raise ValueError(f"{unknown.format(brief(name))}, choose from {', '.join(choices)}")
        return found

    return OptionType(read, ",".join, choices=tuple(choices), is_list=True)


def function_or(choices: Sequence[str]) -> OptionType:
    """Return the type of a name among a few, or of the import path of a function."""

    def read(value: str) -> str:
        if value not in choices and not is_import_path(value):
            raise ValueError(
                f"`{brief(value)}` is not one of {', '.join(choices)}, nor `pkg.mod:fn`"
            )
        return value if value in choices else _import_path(value)

    return of_text(read, choices=tuple(choices))


def _import_path(text: str) -> str:
    parse_import_path(text)
    return text


def parse_address(text: str) -> tuple[str, int]:
    """Return the host and the port of `HOST` or `HOST:PORT`; without a port, 0. An IPv6 host is in brackets.

    Raises:
        ValueError: it is no address.
    """
    found = re.fullmatch(r"(?:([\w.-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{1,5}))?", text)
    if found is None or int(found[3] or 0) > _LARGEST_PORT:
        raise ValueError(f"`{brief(text)}` is not an address, write `HOST` or `HOST:PORT`")
    return found[1] or found[2], int(found[3] or 0)


def format_address(address: tuple[str, int]) -> str:
    """Return an address as `parse_address` reads it."""
    host, port = address
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}" if port else host


def _optimizer(text: str) -> str:
    if not is_import_path(text) and not text.isidentifier():
        raise ValueError(f"`{brief(text)}` is neither a name of torch.optim nor `pkg.mod:fn`")
    return _import_path(text) if is_import_path(text) else text


def _release(text: str) -> str:
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?", text.strip(), re.ASCII)
    if found is None:
        raise ValueError(f"`{brief(text)}` is not a release of PyTorch, write `2.9`")
    return f"{int(found[1])}.{int(found[2])}"


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{brief(value)}` is neither true nor false")
    return value


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ValueError(f"`{brief(text)}` is not `KEY=VALUE`")
    return key.strip(), value


def _variant(text: str) -> tuple[str, str]:
    name, equals, arguments = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z0-9_.+-]{1,40}", name):
        raise ValueError(
            f"`{brief(text)}` is not `NAME=ARGUMENTS`, with a name of letters, digits, `.`, `+`, `-`, `_`"
        )
    try:
        shlex.split(arguments)
    except ValueError as error:
        raise ValueError(f"the arguments of `{name}` cannot be split: {error}") from None
    return name, arguments


def _gpus(value: Any) -> tuple[str, ...]:
    from bsfind.simulation.gpus.catalogue import different_gpus, find_gpu

    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        given = (given,)
    found: list[str] = []
    for one in given:
        text = one if isinstance(one, str) else brief(one)
        is_all = text.strip().lower() == ALL_GPUS
        found += [gpu.key for gpu in (different_gpus() if is_all else (find_gpu(text),))]
    if not found:
        raise ValueError("no GPU is named")
    return tuple(dict.fromkeys(found))


def _write_gpus(gpus: str | Sequence[str]) -> str:
    from bsfind.simulation.gpus.catalogue import different_gpus

    if isinstance(gpus, str):
        return gpus
    is_all = len(gpus) > 1 and set(gpus) == {gpu.key for gpu in different_gpus()}
    return ALL_GPUS if is_all else ",".join(gpus)


def _number(
    parse: Callable[[str], Any], least: float, most: float, allowed: str, *, is_whole: bool = False
) -> Callable[[Any], Any]:
    """Return a reader of numbers and of the texts that `parse` reads, both within limits.

    Args:
        parse: returns the number that a text stands for.
        least: the smallest number.
        most: the greatest.
        allowed: what the message calls these numbers.
        is_whole: they are integers.
    """

    def read(value: Any) -> Any:
        number: Any = parse(value) if isinstance(value, str) else value
        is_right = isinstance(number, numbers.Integral if is_whole else numbers.Real)
        if isinstance(number, bool) or not is_right or not least <= number <= most:
            raise ValueError(f"`{brief(value)}` is not {allowed}")
        return int(number) if is_whole else float(number) + 0.0  # not -0.0

    return read


def _headroom(value: Any) -> units.Headroom:
    is_known = isinstance(value, (numbers.Real, units.Headroom)) and not isinstance(value, bool)
    text = brief(value) if is_known else value
    if not isinstance(text, str):
        raise ValueError(f"`{brief(value)}` is not a size or a percentage")
    found = units.parse_headroom(text)
    return found if found.bytes is None else units.Headroom(bytes=SIZE.read(text))


def _duration(seconds: float) -> str:
    return f"{units.plain_number(seconds)}s"


def _round_duration(seconds: float) -> str:
    return f"{seconds / 60:g}m" if seconds % 60 == 0 else _duration(seconds)


def _percent(fraction: float) -> str:
    return f"{units.plain_number(fraction * 100)}%"


FLAG = OptionType(_flag, lambda value: "on" if value else "off")
"""True or False: on the command line, the option is there or not."""

COUNT = integer(1, _LARGEST_COUNT)
"""A number of steps or of GPUs."""

COUNTS = integers(1, _LARGEST_COUNT)
"""Numbers of the same."""

BATCH_SIZE = integer(1, LARGEST_BATCH_SIZE)
"""A number of samples."""

TEXT = of_text(str)
"""Any text."""

IMPORT_PATH = of_text(_import_path)
"""`pkg.mod:fn`."""

ADDRESS = of_text(parse_address, format_address)
"""An address of this machine: `HOST` or `HOST:PORT`."""

OPTIMIZER = of_text(_optimizer)
"""A name of torch.optim, or `pkg.mod:fn`."""

RELEASE = of_text(_release)
"""A release of PyTorch: `2.9`, which `2.9.1` is too. No number, since that of 2.10 is 2.1."""

KEY_VALUE = of_text(_key_value, "=".join, repeats=True)
"""Pairs of a name and a text (see `parse_value`)."""

VARIANT = of_text(_variant, "=".join, repeats=True)
"""Names of variants of a command, and their arguments as a shell takes them."""

FILES = of_text(str, repeats=True)
"""Paths."""

INPUT_SHAPE = of_text(parse_input_shape, repeats=True)
"""Positional inputs."""

INPUT = of_text(parse_input, repeats=True)
"""Keyword inputs."""

GPUS = OptionType(_gpus, _write_gpus)
"""Keys of GPUs in the catalogue, or sizes in bytes, in a tuple; one alone is written too. Reading raises
UsageError."""


def _size_from(least: int) -> Callable[[Any], Any]:
    ends = " to ".join(map(units.format_bytes, (least, _LARGEST_SIZE)))
    allowed = f"a size from {ends}, in whole bytes"
    return _number(units.parse_size, least, _LARGEST_SIZE, allowed, is_whole=True)


SIZE = OptionType(_size_from(0), units.exact_size)
"""Bytes."""

MEMORY = OptionType(_size_from(units.MIB), units.exact_size)
"""Bytes in which something is to run."""

DURATION = OptionType(
    _number(
        units.parse_duration,
        *(_SHORTEST_S, _LONGEST_S),
        f"a duration from {_SHORTEST_S * 1000:g}ms to {_LONGEST_S / 3600:g}h",
    ),
    _duration,
    show=_round_duration,
)
"""Seconds."""

FRACTION = OptionType(
    _number(
        units.parse_fraction,
        *(0, math.nextafter(1, 0)),
        "a fraction from 0 to less than 100%",
    ),
    _percent,
)
"""A part of one."""

HEADROOM = OptionType(_headroom)
"""`Headroom`: a part of the capacity, or bytes."""

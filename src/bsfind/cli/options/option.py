"""How an option is declared, and how its text is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer

from bsfind.import_path import parse_import_path

T = TypeVar("T")


def reader(parse: Callable[[str], T]) -> Callable[[Any], T]:
    """Turn a parser that raises ValueError into one whose message reaches the user."""

    def read(value: Any) -> T:
        # Defaults and values of the configuration file pass through here too.
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            return parse(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    read.__name__ = parse.__name__
    return read


def import_path(text: str) -> str:
    """Check an import path, without importing anything.

    Raises:
        ValueError: it is none.
    """
    parse_import_path(text)
    return text


def key_value(text: str) -> tuple[str, str]:
    """Read `KEY=VALUE`.

    Raises:
        ValueError: it is not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ValueError(f"`{text}` is not `KEY=VALUE`")
    return key.strip(), value


def option(
    *flags: str,
    panel: str,
    help: str,
    parse: Callable[[str], Any] | None = None,
    metavar: str | None = None,
    **more: Any,
) -> Any:
    """Declare an option: the variable is named after its long flag."""
    name = next(flag for flag in flags if flag.startswith("--")).split("/")[0]
    return typer.Option(
        *flags,
        rich_help_panel=panel,
        help=help,
        envvar="BSFIND_" + name.removeprefix("--").replace("-", "_").upper(),
        parser=reader(parse) if parse else None,
        metavar=metavar,
        **more,
    )

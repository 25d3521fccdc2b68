"""Text in the width of the terminal: no number is cut, and none is separated from its unit."""

from __future__ import annotations

import re
import textwrap

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from bsfind.report.visible import visible

_NO_BREAK = "\N{NO-BREAK SPACE}"
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:[KMGT]i?B|B|%|x|s|ms|M|K)\b|%)")


def excess(table: Table, console: Console) -> int:
    """Return by how many columns a table with no cell cut or wrapped is wider than the console."""
    wide = console.options.update(width=1000, max_width=1000)
    return Measurement.get(console, wide, table).maximum - console.width


def fits(table: Table, console: Console) -> bool:
    """Tell whether the console is wide enough to print the table with no cell cut or wrapped."""
    return excess(table, console) <= 0


def is_utf8(console: Console) -> bool:
    """Tell whether the console can print every character."""
    return console.encoding.lower().replace("-", "") == "utf8"


def print_sentence(
    console: Console, text: str, style: str = "", *, first: str = "", indent: str = ""
) -> None:
    """Print a text as one paragraph (see `sentence`)."""
    wrapped = sentence(text, console, first=first, indent=indent)
    console.print(Text(wrapped, style=style), soft_wrap=True)


def labelled(label: str, style: str, text: str, console: Console) -> Text:
    """Return a sentence with a coloured label, `hint: …`, wrapped for printing with `soft_wrap`."""
    _, _, rest = sentence(f"{label}: {text}", console).partition(":")
    return Text.assemble((f"{label}:", style), rest)


def sentence(text: str, console: Console, *, first: str = "", indent: str = "") -> str:
    r"""Return a text as one line without control characters, wrapped for printing with `soft_wrap`.

    At a terminal it is wrapped between words, but not between a number and its unit; a terminal would
    break the line within a number. In a pipe it stays one line.

    Args:
        text: a text; a line break in it is shown as `\n`.
        console: the console that prints it.
        first: prefix of the first line.
        indent: prefix of each further line.
    """
    text = visible(text)
    if not console.is_terminal:
        return first + text
    lines = textwrap.wrap(
        _BEFORE_UNIT.sub(_NO_BREAK, text),
        width=max(20, console.width),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace(_NO_BREAK, " ")

"""What fits into a line: no number is cut, and none stands apart from its unit."""

from __future__ import annotations

import re
import textwrap

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
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


def labelled(label: str, style: str, text: str, console: Console) -> Text:
    """Return a sentence behind a coloured label, `hint: …`, as it is to be printed with `soft_wrap`."""
    _, _, rest = sentence(f"{label}: {text}", console).partition(":")
    return Text.assemble((f"{label}:", style), rest)


def sentence(text: str, console: Console, *, first: str = "", indent: str = "") -> str:
    """Return a text as it is to be printed with `soft_wrap`, without what a terminal would obey.

    At a terminal it is wrapped between words, but not between a number and its unit; a terminal would
    break the line within a number. In a pipe it stays one line.

    Args:
        text: without line breaks.
        console: where it is going to be printed.
        first: what stands in front of it.
        indent: what stands in front of each further line.
    """
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
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

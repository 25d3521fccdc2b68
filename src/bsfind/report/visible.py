r"""Text that does not come from bsfind: what a screen would act on, or not show, becomes visible.

Names of processes and modules, messages of exceptions, what a program prints, and reports that others wrote
may contain escape sequences of terminals, control characters, directions of writing, and commands of a CI
runner. Where bsfind writes text for people, `visible` turns them into escapes such as `\x1b` and `\u202e`.
"""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 controls with escape and line breaks, DEL, C1 controls
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u3164"
    "\ufe00-\ufe0d\ufeff\uffa0"  # without a width, and directions of writing; U+FE0F belongs to emoji
    "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # format of Arabic, Syriac, Kaithi
    "\u2028-\u202e"  # line and paragraph separators, directions of writing
    "\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"  # annotations, noncharacters, lone surrogates
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_RUNNER_COMMAND = re.compile(r"^(\s*):(?=:)|#(?=#\w*\[)")
"""`::error::` and `##[error]` of GitHub Actions (actions/runner, src/Runner.Common/ActionCommand.cs),
`##vso[…]` of Azure Pipelines, `##teamcity[…]`."""

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


def visible(text: str) -> str:
    """Return a text in one line, in which nothing acts on what shows it."""
    text = _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return _RUNNER_COMMAND.sub(
        lambda found: r"\x23" if found[1] is None else rf"{found[1]}\x3a", text
    )


def visible_lines(text: str) -> str:
    """Return a text of several lines, such as a traceback or the output of a program.

    Line breaks stay, tabs become spaces, colours are removed. Of a line that a progress bar wrote over with
    carriage returns, the last state is left.
    """
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in _COLOUR.sub("", text).split("\n"))
    return "\n".join(visible(line.expandtabs()) for line in lines)

"""The terminal: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from bsfind.errors import BsfindError
from bsfind.records import ReportWarning
from bsfind.report.visible import visible_lines
from bsfind.report.width import labelled, sentence

_PIPE_WIDTH = 120
"""Width of tables that go to a file or a pipe, if COLUMNS does not say otherwise."""


class _VisibleConsole(Console):
    """A console that no text can use for escape sequences, whoever has forgotten to make it visible."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible_lines(segment.text))


def _console(stream: TextIO, color: str) -> Console:
    width = None
    if not stream.isatty() and not os.environ.get("COLUMNS"):
        width = _PIPE_WIDTH
    return _VisibleConsole(
        file=stream,
        width=width,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        no_color=True if color == "never" else None,
        force_terminal=True if color == "always" else None,
    )


class Terminal:
    """Where a command writes.

    Args:
        color: `auto`, `always` or `never`.
        verbose: every line that the user's code prints, repeated ones too.

    Attributes:
        out: stdout, for the answer.
        err: stderr, for everything else.
    """

    def __init__(self, *, color: str = "auto", verbose: bool = False) -> None:
        self.out = _console(sys.stdout, color)
        self.err = _console(sys.stderr, color)
        self.verbose = verbose
        self._seen: set[str] = set()

    def error(self, error: BsfindError) -> None:
        """Print what failed, why, and what to do about it."""
        self._labelled("error", "bold red", error.message)
        if error.detail:
            for line in visible_lines(error.detail.rstrip()).split("\n"):
                self._line(f"  {line}")
        if error.hint:
            if error.detail:
                self._line("")
            self.hint(error.hint)

    def warning(self, warning: ReportWarning) -> None:
        """Print a warning and its hint."""
        self._labelled("warning", "bold yellow", warning.message)
        if warning.hint:
            self.hint(warning.hint)

    def hint(self, text: str) -> None:
        """Print what to do next."""
        self._labelled("hint", "cyan", text)

    def note(self, text: str) -> None:
        """Print a line of the log."""
        self._line(sentence(text, self.err))

    def user_output(self, line: str) -> None:
        """Print a line that the user's code printed; each text once, unless verbose."""
        if self.verbose or line not in self._seen:
            self._seen.add(line)
            self._line(visible_lines(line))

    def _labelled(self, label: str, style: str, text: str) -> None:
        self.err.print(labelled(label, style, text, self.err), soft_wrap=True)

    def _line(self, text: str) -> None:
        self.err.print(Text(text), soft_wrap=True)

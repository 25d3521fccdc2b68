"""The terminal: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import IO, TextIO

from rich.console import Console
from rich.text import Text

from bsfind.errors import BsfindError, UsageError
from bsfind.records import ReportWarning
from bsfind.report.width import labelled, sentence

_PIPE_WIDTH = 120
"""Width of tables that go to a file or a pipe, if COLUMNS does not say otherwise."""


def discard_stdout() -> None:
    """Discard later writes to stdout, after its reader has closed it (`| head`)."""
    _discard(sys.stdout)


def print_answer(write: Callable[[], object]) -> None:
    """Write the answer to stdout, and flush it. A reader that has closed the pipe is not an error.

    Raises:
        UsageError: the answer cannot be written (a full disk).
    """
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        discard_stdout()
        raise UsageError(f"cannot write the answer: {error.strerror or error}") from error


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # Rich would leave with exit code 1, which means "nothing fits".
        raise BrokenPipeError


class _LogConsole(Console):
    def on_broken_pipe(self) -> None:
        # Nobody reads stderr any more; the answer is still wanted.
        _discard(self.file)


def _discard(stream: IO[str]) -> None:
    """Discard what is written to a stream, and what is in its buffer."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _console(stream: TextIO, color: str, kind: type[Console]) -> Console:
    width = None
    if not stream.isatty() and not os.environ.get("COLUMNS"):
        width = _PIPE_WIDTH
    return kind(
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
        self.out = _console(sys.stdout, color, _Console)
        self.err = _console(sys.stderr, color, _LogConsole)
        self.verbose = verbose
        self._seen: set[str] = set()

    def error(self, error: BsfindError) -> None:
        """Print what failed, why, and what to do about it."""
        self._labelled("error", "bold red", error.message)
        if error.detail:
            for line in error.detail.splitlines():
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
            self._line(line)

    def _labelled(self, label: str, style: str, text: str) -> None:
        self.err.print(labelled(label, style, text, self.err), soft_wrap=True)

    def _line(self, text: str) -> None:
        self.err.print(Text(text), soft_wrap=True)

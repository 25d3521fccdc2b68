"""The real command line, without the search that it would start."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import bsfind.cli.session
from bsfind.cli import main as entry
from bsfind.search.request import settings_from
from bsfind.settings import Settings


@dataclass(frozen=True)
class Outcome:
    """What a command line came to; `options` is None if the search was not reached.

    `given` names the options that it gave.
    """

    code: int
    options: dict[str, Any] | None
    given: frozenset[str]
    stdout: str
    stderr: str


def command_line(*argv: str) -> Outcome:
    """Run `bsfind ARGV` up to where its options are parsed."""
    seen: list[dict[str, Any]] = []
    named: set[str] = set()

    def run_session(options: dict[str, Any], given: frozenset[str]) -> int:
        seen.append(dict(options))
        named.update(given)
        return 0

    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["bsfind", *argv]),
        # Not `python -m pytest`: the messages name the program.
        mock.patch.object(sys.modules["__main__"], "__package__", None),
        mock.patch.object(bsfind.cli.session, "run_session", run_session),
        mock.patch.object(entry.signal, "signal"),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            entry.main()
        except SystemExit as leaving:
            code = leaving.code
    assert isinstance(code, int)
    options = seen[0] if seen else None
    return Outcome(code, options, frozenset(named), stdout.getvalue(), stderr.getvalue())


def options_of(*argv: str) -> dict[str, Any]:
    """Return the parsed options of a command line that is right."""
    outcome = command_line(*argv)
    assert outcome.options is not None, outcome.stderr
    return outcome.options


def settings_of(argv: Sequence[str]) -> Settings:
    """Return the settings that a command line that is right asks for."""
    outcome = command_line(*argv)
    assert outcome.options is not None, outcome.stderr
    return settings_from(outcome.options["target"], outcome.options, outcome.given)

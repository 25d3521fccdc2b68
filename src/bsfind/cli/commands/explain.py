"""`bsfind explain`: what an out-of-memory error in a log says, and what to do about it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from bsfind.errors import ExitCode, UsageError


def explain(
    log: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|-",
            help="The log, or `-` for standard input, which is the default.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> int:
    """Explain the out-of-memory error in a log.

    The log may be UTF-16 or UTF-32, and compressed (gzip, bzip2, xz).

    Exit 0 when there is one, 1 when there is none, 2 when the log cannot be read to its end.
    """
    from bsfind.cli.console import Terminal
    from bsfind.explain import explanation
    from bsfind.explain.screen import print_explanation
    from bsfind.report.json import dumps

    try:
        with _open(log) as stream:
            found = explanation.explain(stream)
    except OSError as error:
        raise UsageError(
            f"cannot read `{log}`",
            detail=error.strerror or str(error),
            hint="give a log file, or `-`",
        ) from None
    if json:
        sys.stdout.write(dumps(found.to_json()))
    else:
        print_explanation(found, Terminal().out)
    return ExitCode.OK if found.errors else ExitCode.DOES_NOT_FIT


def _open(log: str | None) -> AbstractContextManager[BinaryIO]:
    if log is not None and log != "-":
        return Path(log).open("rb")
    if sys.stdin is None or (log is None and sys.stdin.isatty()):
        raise UsageError(
            "no log is given",
            hint="`bsfind explain FILE`, or `python train.py 2>&1 | bsfind explain`",
        )
    return nullcontext(sys.stdin.buffer)

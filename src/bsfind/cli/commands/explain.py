"""`bsfind explain`: what an out-of-memory error in a log says, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer


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

    Exit 0 when there is one, 1 when there is none.
    """
    from bsfind.cli.explanation import print_explanation  # `--help` goes without it

    return print_explanation(log, as_json=json)

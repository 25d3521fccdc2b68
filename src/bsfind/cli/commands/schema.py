"""`bsfind schema`: the JSON Schema of the report."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bsfind.cli.parameters import one_of
from bsfind.errors import UsageError
from bsfind.units import brief

_NAMES = ("report", "gpus", "inspection")


def schema(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="report: of `run`, `launch` and `check`; gpus: of `run` with a list of GPUs; inspection: of "
            "`inspect`.",
            autocompletion=one_of(_NAMES),
        ),
    ] = "report",
) -> None:
    """Print the JSON Schema of the report that `--json` prints."""
    from bsfind.report.json import SCHEMAS, dumps

    if name not in SCHEMAS:
        raise UsageError(f"`{brief(name)}` is not one of {', '.join(SCHEMAS)}")
    sys.stdout.write(dumps(SCHEMAS[name]()))

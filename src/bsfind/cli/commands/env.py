"""`bsfind env`: what a bug report needs."""

from __future__ import annotations

from typing import Annotated

import typer


def env(
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print versions, GPUs and settings, for a bug report."""
    from bsfind.cli.environment_report import print_environment  # `--help` goes without it

    print_environment(as_json=json)

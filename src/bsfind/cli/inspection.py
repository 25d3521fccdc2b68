"""One `bsfind inspect` from its options to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from bsfind.cli.console import Terminal, discard_stdout
from bsfind.cli.options import ColorChoice
from bsfind.cli.progress import ProgressLine
from bsfind.cli.request import settings_from
from bsfind.cli.stand_in import stand_in
from bsfind.exit_codes import ExitCode
from bsfind.inspector import Inspector
from bsfind.report.composition import print_inspection
from bsfind.report.json import to_json

__all__ = ["run_inspection"]


def run_inspection(options: Mapping[str, Any]) -> int:
    """Inspect what a command line asks for, print the answer, return the exit code.

    Raises:
        BsfindError: there is no answer.
    """
    settings = settings_from(options)
    verbose: bool = options["verbose"]
    terminal = Terminal(color=ColorChoice(options["color"]).value, verbose=verbose)
    line = ProgressLine(terminal, enabled=not (options["no_progress"] or verbose))
    inspector = Inspector(
        settings,
        command=["bsfind", *sys.argv[1:]],
        on_no_gpu=lambda error: stand_in(
            error, settings.device, terminal, for_scripts=options["json"]
        ),
        on_progress=line.update,
        on_output=terminal.user_output,
    )
    with line.shown():
        report = inspector.run()
    for warning in report.warnings:
        terminal.warning(warning)
    try:
        if options["json"]:
            sys.stdout.write(to_json(report))
        else:
            print_inspection(report, terminal.out, top=options["top"])
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    return ExitCode.OK if report.fits else ExitCode.DOES_NOT_FIT

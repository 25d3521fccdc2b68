"""One `bsfind inspect` from its options to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from bsfind.cli.console import Terminal, discard_stdout
from bsfind.cli.interruption import Interruption
from bsfind.cli.options import ColorChoice
from bsfind.cli.progress import ProgressLine
from bsfind.cli.request import settings_from
from bsfind.cli.stand_in import stand_in
from bsfind.errors import ExitCode, NoGpuError, Terminated, UsageError
from bsfind.inspect.inspector import Inspector
from bsfind.inspect.records import InspectionReport
from bsfind.inspect.render import print_inspection
from bsfind.report.json import to_json
from bsfind.search.events import Events, Progress
from bsfind.settings import DeviceChoice


def run_inspection(options: Mapping[str, Any], given: Collection[str]) -> int:
    """Inspect what a command line asks for, print the answer, return the exit code.

    Args:
        options: parsed, by parameter name.
        given: names of those that the user gave.

    Raises:
        BsfindError: there is no answer.
    """
    settings = settings_from(options, given)
    verbose: bool = options["verbose"]
    terminal = Terminal(color=ColorChoice(options["color"]).value, verbose=verbose)
    line = ProgressLine(terminal, enabled=not (options["no_progress"] or verbose))
    interruption = Interruption()

    class TerminalEvents(Events):
        def progress(self, progress: Progress) -> None:
            interruption.check()
            line.update(progress)

        def output(self, line: str) -> None:
            terminal.user_output(line)

        def no_gpu(self, error: NoGpuError) -> DeviceChoice | None:
            return stand_in(error, settings.device, terminal, for_scripts=options["json"])

    inspector = Inspector(settings, command=["bsfind", *sys.argv[1:]], events=TerminalEvents())
    with interruption:
        try:
            with line.shown():
                report = inspector.run()
        except (KeyboardInterrupt, Terminated):
            return interruption.exit_code or ExitCode.INTERRUPTED
        interruption.hold()
        for warning in report.warnings:
            terminal.warning(warning)
        _print(report, terminal, options)
    return interruption.exit_code or (ExitCode.OK if report.fits else ExitCode.DOES_NOT_FIT)


def _print(report: InspectionReport, terminal: Terminal, options: Mapping[str, Any]) -> None:
    """Print the answer. A reader that has left is content.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        if options["json"]:
            sys.stdout.write(to_json(report))
        else:
            print_inspection(report, terminal.out, top=options["top"])
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        discard_stdout()
        raise UsageError(f"cannot write the answer: {error.strerror or error}") from error

"""`bsfind inspect`: what is the memory made of at this batch size?"""

from __future__ import annotations

import sys
from typing import Any

from bsfind.cli.options import options_of
from bsfind.cli.parameters import command
from bsfind.errors import ExitCode, Terminated, UsageError


@command(options_of("inspect"))
def inspect(options: dict[str, Any], given: frozenset[str]) -> int:
    """Show what memory is made of at one batch size, and which modules hold it.

    Nothing runs: the GPU of this machine, or `--gpu`, is simulated.

    Exit 0 if it fits in every precision asked for, 1 if not.

    bsfind inspect mypkg.models:Net --batch-size 64 --input-shape 3,224,224
    bsfind inspect mypkg.models:Net -b 64 --input-shape 3,224,224 --precision amp --gpu a10g
    """
    from bsfind.cli.progress import TerminalEvents
    from bsfind.inspect.inspector import Inspector
    from bsfind.inspect.screen import print_inspection
    from bsfind.report.json import to_json
    from bsfind.search.request import settings_from

    settings = settings_from(options["target"], options, given)
    if len(settings.seq_lens) > 1:
        raise UsageError(
            "`bsfind inspect` takes one `--seq-len`", hint="`bsfind run` has a row for each"
        )
    events = TerminalEvents(settings.device, options)
    terminal, interruption = events.terminal, events.interruption
    inspector = Inspector(settings, command=["bsfind", *sys.argv[1:]], events=events)
    with interruption:
        try:
            with events.line.shown():
                report = inspector.run()
        except (KeyboardInterrupt, Terminated):
            return interruption.exit_code or ExitCode.INTERRUPTED
        interruption.hold()
        for warning in report.warnings:
            terminal.warning(warning)
        if options["json"]:
            sys.stdout.write(to_json(report))
        else:
            print_inspection(report, terminal.out, top=options["top"])
        sys.stdout.flush()
    return interruption.exit_code or (ExitCode.OK if report.fits else ExitCode.DOES_NOT_FIT)

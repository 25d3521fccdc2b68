"""`bsfind diff`: did this commit change what fits?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bsfind import option_types as types
from bsfind.cli.parameters import reader
from bsfind.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from bsfind.results import Report

_MOST_BYTES = 16 << 20
"""Size of a file that may be a report: hundreds of times the usual one."""


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The report to compare with.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The report that may differ.")],
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            parser=reader(types.FRACTION, "--threshold"),
            metavar="PERCENT",
            help="By what part figures may differ; 0: not at all.",
        ),
    ] = "2%",
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> int:
    """Compare two reports: did this commit change what fits?

    Takes what `--json` or `--export report.json` of `bsfind run` or
    `bsfind check` wrote. For each row of both: the largest and the
    recommended batch size, and the peaks at the largest size that ran in both.
    Where none did, the peaks at the recommended sizes are shown, not judged.

    Exit 0: nothing is worse by more than the threshold (what is better is
    shown); 1: a batch size fell, or a peak rose, by more; 2: a file is no
    report, or the two have nothing in common. What else differs (device,
    workload, torch) is a warning.

    JSON: verdict (same, better, worse), threshold, results (precision, remedy,
    seq_len, verdict, changes), warnings. Of a change: figure (max_batch_size,
    recommended_batch_size, peak_allocated_bytes, peak_reserved_bytes), old,
    new, change (as a part of old), old_batch_size, new_batch_size, verdict.

    bsfind diff main.json branch.json
    bsfind diff main.json branch.json --threshold 5% --json
    """
    from bsfind.cli.console import Terminal
    from bsfind.records import ReportWarning
    from bsfind.report.diff import compare, print_difference
    from bsfind.report.json import dumps

    terminal = Terminal()
    difference = compare(_read(old), _read(new), float(threshold))
    for text in difference.warnings:
        terminal.warning(ReportWarning(code="different", message=text))
    if not difference.is_judged:
        raise UsageError(
            f"`{old}` and `{new}` have nothing in common that could be compared",
            hint="compare two of `bsfind run`, or two of `bsfind check` with the same batch size",
        )
    if json:
        sys.stdout.write(dumps(difference.to_json()))
    else:
        print_difference(difference, terminal.out)
    return ExitCode.DOES_NOT_FIT if difference.verdict == "worse" else ExitCode.OK


def _read(name: str) -> Report:
    """Read a report.

    Raises:
        UsageError: the file cannot be read, or is not a report.
    """
    from bsfind.report.json import read_report

    try:
        with Path(name).open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read `{name}`: {error.strerror or error}") from None
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
        return read_report(content)
    except ValueError as error:
        raise UsageError(
            f"`{name}` is not a bsfind report: {error}",
            hint="`bsfind run … --export report.json` writes one",
        ) from None

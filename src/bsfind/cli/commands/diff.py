"""`bsfind diff`: did this commit change what fits?"""

from __future__ import annotations

from typing import Annotated

import typer

from bsfind.cli.options.option import reader
from bsfind.units import parse_fraction


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="The report to compare with.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The report that may differ.")],
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            parser=reader(parse_fraction),
            metavar="PERCENT",
            help="By what part figures may differ; 0: not at all.",
        ),
    ] = "2%",
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> int:
    """Compare two reports: did this commit change what fits?

    Takes what `--json` or `--export report.json` of `bsfind run` or
    `bsfind check` wrote. For each precision of both: the largest and the
    recommended batch size, and the peaks at the largest size that ran in both.
    Where none did, the peaks at the recommended sizes are shown, not judged.

    Exit 0: nothing is worse by more than the threshold (what is better is
    told); 1: a batch size fell, or a peak rose, by more; 2: a file is no
    report, or the two have nothing in common. What else differs (device,
    workload, torch) is a warning.

    JSON: verdict (same, better, worse), threshold, results (precision, remedy,
    verdict, changes), warnings. Of a change: figure (max_batch_size,
    recommended_batch_size, peak_allocated_bytes, peak_reserved_bytes), old,
    new, change (as a part of old), old_batch_size, new_batch_size, verdict.

    bsfind diff main.json branch.json
    bsfind diff main.json branch.json --threshold 5% --json
    """
    from bsfind.cli.differences import print_diff  # `--help` goes without it

    return print_diff(old, new, threshold, as_json=json)

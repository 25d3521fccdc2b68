"""What `run` with a list of GPUs does otherwise: its output for scripts, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from bsfind.cli.console import Terminal
from bsfind.errors import BelowMinimumError, UsageError
from bsfind.report.compared_gpus import reasons
from bsfind.report.export import DRAWN_FORMATS
from bsfind.search.compared_gpus import ComparedGpus


def check_output(options: Mapping[str, Any]) -> None:
    """Make sure that the answer can be written as the options ask.

    Raises:
        UsageError: a picture shows the search on one GPU.
    """
    drawn = [path for path in options["export"] or () if path.suffix.lower() in DRAWN_FORMATS]
    if options["plot"] or drawn:
        name = f"--export {drawn[0]}" if drawn else "--plot"
        raise UsageError(
            f"`{name}` draws the search on one GPU, and `--gpu` names {len(options['gpu'])}",
            hint="files with the endings .json, .md and .csv have a row for each",
        )


def print_sizes(report: ComparedGpus, terminal: Terminal) -> None:
    """Print a line for each GPU with a recommended size: `NAME SIZE`."""
    for card in report.cards:
        if card.report.recommendation is not None:
            sys.stdout.write(f"{card.gpu} {card.report.recommendation.size}\n")
    for text in reasons(report):
        terminal.note(text)


def below_minimum(report: ComparedGpus, least: int) -> BelowMinimumError | None:
    """Return the error of an answer that is below `--fail-under` on every GPU; None if it is not."""
    found = [card.report.recommendation for card in report.cards]
    sizes = [chosen.size for chosen in found if chosen is not None]
    if report.smallest is not None or not sizes:
        return None
    searched = report.cards[0].report.searched
    return BelowMinimumError(
        f"the largest recommended {searched}, {max(sizes):,}, is below `--fail-under {least}`"
    )

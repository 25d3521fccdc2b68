"""How far and how finely to search: panel Search."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from bsfind import units
from bsfind.cli.options import completion
from bsfind.cli.options.option import option
from bsfind.search.variants import REMEDIES

_PANEL = "Search"


class Objective(str, Enum):
    """What the recommended batch size is best at."""

    largest = "largest"
    fastest = "fastest"


def _remedies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in REMEDIES:
            raise ValueError(f"`{name}` is nothing to compare, choose from {', '.join(REMEDIES)}")
    return names


BatchSize = Annotated[
    int,
    option("--batch-size", "-b", panel=_PANEL, min=1, metavar="N", help="The batch size to try."),
]
MinBatchSize = Annotated[
    int,
    option(
        "--min-batch-size",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Smallest useful answer: exit 1 when less fits.",
    ),
]
FailUnder = Annotated[
    int | None,
    option(
        "--fail-under",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Exit 1 when the recommended batch size is smaller; it is reported all the same.",
    ),
]
MaxBatchSize = Annotated[
    int | None,
    option(
        "--max-batch-size",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Largest batch size to try.  [default: what memory allows]",
        show_default=False,
    ),
]
MultipleOf = Annotated[
    int,
    option(
        "--multiple-of",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Try and recommend multiples of this only.",
    ),
]
Tolerance = Annotated[
    str,
    option(
        "--tolerance",
        panel=_PANEL,
        parse=units.parse_fraction,
        metavar="PERCENT",
        help="Gap that may remain between the largest that ran and the smallest that did not; 0: exact.",
    ),
]
Headroom = Annotated[
    str,
    option(
        "--headroom",
        panel=_PANEL,
        parse=units.parse_headroom,
        metavar="PERCENT|SIZE",
        help="Memory that the recommended batch size leaves free.",
    ),
]
ObjectiveOption = Annotated[
    Objective,
    option(
        "--objective",
        panel=_PANEL,
        help="Recommend the largest, or the smallest within 2 % of the best samples/s.",
    ),
]
GlobalBatch = Annotated[
    int | None,
    option(
        "--global-batch",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Samples for each optimizer step, over all GPUs: recommend the micro-batch and the "
        "accumulation steps that reach it.",
    ),
]
WorldSize = Annotated[
    int,
    option(
        "--world-size",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="GPUs that share the global batch.",
    ),
]
Compare = Annotated[
    str,
    option(
        "--compare",
        panel=_PANEL,
        parse=_remedies,
        autocompletion=completion.names(tuple(REMEDIES)),
        metavar="NAME,…",
        help=f"Also show what these buy, a row each: {', '.join(REMEDIES)}.",
        show_default=False,
    ),
]
Steps = Annotated[
    int,
    option("--steps", panel=_PANEL, min=1, metavar="N", help="Optimizer steps per trial."),
]
ConfirmSteps = Annotated[
    int,
    option(
        "--confirm-steps",
        panel=_PANEL,
        min=1,
        metavar="N",
        help="Optimizer steps of the recommended size in a fresh process, to confirm it.",
    ),
]
TrialTimeout = Annotated[
    str,
    option(
        "--trial-timeout",
        panel=_PANEL,
        parse=units.parse_duration,
        metavar="TIME",
        help="Longest time for one trial, such as `90s` or `10m`.",
    ),
]
TimeBudget = Annotated[
    str | None,
    option(
        "--time-budget",
        panel=_PANEL,
        parse=units.parse_duration,
        metavar="TIME",
        help="Longest time for everything; what is known by then is reported, with exit 5.",
    ),
]

"""What is printed and written: panel Output."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from bsfind.cli.options.option import option
from bsfind.report.export import EXPORT_FORMATS

_PANEL = "Output"


class ColorChoice(str, Enum):
    """When to colour the output."""

    auto = "auto"
    always = "always"
    never = "never"


def _export(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in EXPORT_FORMATS:
        formats = ", ".join(EXPORT_FORMATS)
        raise ValueError(f"`{text}` has no format that can be written, end it in {formats}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder `{path.parent}`")
    if path.is_dir():
        raise ValueError(f"`{text}` is a folder")
    return path


Json = Annotated[
    bool, option("--json", panel=_PANEL, help="Print the report as JSON instead of the table.")
]
Quiet = Annotated[
    bool,
    option("--quiet", "-q", panel=_PANEL, help="Print nothing but the recommended batch size."),
]
Top = Annotated[
    int,
    option(
        "--top",
        panel=_PANEL,
        min=0,
        metavar="N",
        help="Show the N modules that hold the most; 0 shows all.",
    ),
]
Verbose = Annotated[
    bool,
    option("--verbose", "-v", panel=_PANEL, help="One line per trial, and every line of output."),
]
Export = Annotated[
    list[str] | None,
    option(
        "--export",
        panel=_PANEL,
        parse=_export,
        metavar="FILE",
        help=f"Also write the report to a file ({', '.join(EXPORT_FORMATS)}); repeatable.",
    ),
]
Plot = Annotated[
    bool,
    option("--plot", panel=_PANEL, help="Draw peak memory against batch size below the table."),
]
GitHub = Annotated[
    bool,
    option(
        "--github",
        panel=_PANEL,
        help="In GitHub Actions: write the step's summary and its outputs `batch_size` and "
        "`precision`, and annotate a failure.",
    ),
]
NoProgress = Annotated[
    bool, option("--no-progress", panel=_PANEL, help="No line about what is going on.")
]
Color = Annotated[ColorChoice, option("--color", panel=_PANEL, help="When to use colours.")]

"""Two reports, read from their files, compared and printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bsfind.cli.console import Terminal
from bsfind.errors import ExitCode, UsageError
from bsfind.records import Report, ReportWarning
from bsfind.report.diff import compare
from bsfind.report.diff_table import print_difference


def print_diff(old: str, new: str, threshold: Any, *, as_json: bool) -> int:
    """Print what differs between two reports; returns the exit code.

    Args:
        old: a file.
        new: a file.
        threshold: the part by which figures may differ.
        as_json: print the JSON document instead of the table.

    Raises:
        UsageError: a file is no report, or the reports have nothing in common.
    """
    terminal = Terminal()
    difference = compare(_read(old), _read(new), threshold)
    for text in difference.warnings:
        terminal.warning(ReportWarning(code="different", message=text))
    if not difference.is_judged:
        raise UsageError(
            f"`{old}` and `{new}` have nothing in common that could be compared",
            hint="compare two of `bsfind run`, or two of `bsfind check` with the same batch size",
        )
    if as_json:
        sys.stdout.write(json.dumps(difference.to_json(), indent=2) + "\n")
    else:
        print_difference(difference, terminal.out)
    return ExitCode.DOES_NOT_FIT if difference.verdict == "worse" else ExitCode.OK


def _read(name: str) -> Report:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read `{name}`: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"`{name}` is not a report of bsfind: it is no text") from None
    try:
        return Report.from_json(json.loads(text))
    except json.JSONDecodeError as error:
        why = f"it is not JSON: {error}"
    except KeyError as error:
        why = f"it has no {error}; another version of bsfind may have written it"
    except (AttributeError, IndexError, TypeError):
        why = "it has other fields"
    except ValueError as error:
        why = str(error)
    raise UsageError(
        f"`{name}` is not a report of bsfind: {why}",
        hint="`bsfind run … --export report.json` writes one",
    )

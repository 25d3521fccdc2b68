"""`--github`: what a step of GitHub Actions is told at the end of a `run` or `check`."""

from __future__ import annotations

import os
import sys

from bsfind.cli.console import Terminal
from bsfind.errors import ExitCode, UsageError
from bsfind.records import Report, ReportWarning
from bsfind.report.github import GitHubStep, annotation


class GitHubReporter:
    """Finds the step's files before the search, and writes to them after it.

    Args:
        terminal: for a warning where this is no step: the command line of a workflow is tried at a
            desk as well, and its answer does not depend on the files.

    Raises:
        UsageError: there are files, and they cannot be written.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._step = GitHubStep.of(os.environ)
        if self._step.missing:
            terminal.warning(
                ReportWarning(
                    code="no_github_step",
                    message=f"`--github` writes nothing to {' and '.join(self._step.missing)}, "
                    "which only a step of GitHub Actions has",
                )
            )

    def tell(self, report: Report, code: int, message: str) -> int:
        """Write summary, outputs and annotation; returns the exit code.

        Args:
            report: what was found.
            code: the exit code so far.
            message: what went wrong, where the report does not tell.
        """
        try:
            self._step.write(report)
        except UsageError as error:
            self._terminal.error(error)
            code = ExitCode.USAGE if code == ExitCode.OK else code
        text = annotation(code, report, message) if self._step.is_one else None
        if text is not None:
            # Not through Rich: a command has to stand on one line, as it is.
            sys.stderr.write(text)
            sys.stderr.flush()
        return code

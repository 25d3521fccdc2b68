"""What a `run` or `check` writes besides its answer: the files of `--export`, and those of `--github`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bsfind.cli.console import Terminal
from bsfind.errors import ExitCode, UsageError
from bsfind.records import ReportWarning
from bsfind.report.export import DRAWN_FORMATS, check_writable, is_stream, write_report
from bsfind.report.github import GitHubStep, annotation
from bsfind.results import Report
from bsfind.search.compared_gpus import ComparedGpus

_PAUSE = 9
"""The pause after a slow format was written, as a multiple of the time that took: where trials take
milliseconds, as predicted ones do, drawing each would take most of the time."""


class Exports:
    """Keeps the files of `--export` up to date: written after every trial, and at the end.

    What is not a regular file is written once, at the end.

    Args:
        paths: the files, the ending of each tells its format.
        terminal: for errors.
        clock: seconds.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        terminal: Terminal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = tuple(paths)
        self._terminal = terminal
        self._clock = clock
        self._unwritten: set[Path] = set()
        self._not_before_s: dict[Path, float] = {}

    def check(self) -> None:
        """Check before the search that its result can be written.

        Raises:
            UsageError: a file cannot be written.
        """
        for path in self._paths:
            check_writable(path)

    def update(self, current: Callable[[], Report | ComparedGpus]) -> None:
        """Write what is known after a trial; a slow format only when it is due."""
        now_s = self._clock()
        due = [
            path
            for path in self._paths
            if now_s >= self._not_before_s.get(path, 0.0) and not is_stream(path)
        ]
        if due:
            self._write(current(), due)

    def finish(self, report: Report | ComparedGpus) -> bool:
        """Write the finished report; returns whether all files hold it."""
        self._write(report, self._paths)
        return not self._unwritten

    def _write(self, report: Report | ComparedGpus, paths: Sequence[Path]) -> None:
        for path in paths:
            started_s = self._clock()
            try:
                write_report(report, path)
                self._unwritten.discard(path)
            except UsageError as error:
                # The search goes on: its answer matters more than the file.
                if path not in self._unwritten:
                    self._unwritten.add(path)
                    self._terminal.error(error)
            if path.suffix.lower() in DRAWN_FORMATS:
                now_s = self._clock()
                self._not_before_s[path] = now_s + _PAUSE * (now_s - started_s)


class GitHubReporter:
    """Finds the files of a step of GitHub Actions before the search, and writes to them after it.

    Args:
        terminal: for a warning where there is no step: a workflow's command line is also tried outside
            of one, and its answer does not depend on the files.

    Raises:
        UsageError: the files cannot be written.
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

    def tell(self, report: Report | ComparedGpus, code: int, message: str) -> int:
        """Write summary, outputs and annotation; returns the exit code.

        Args:
            report: what was found.
            code: the exit code so far.
            message: what went wrong, where the report does not say it.
        """
        try:
            self._step.write(report)
        except UsageError as error:
            self._terminal.error(error)
            code = ExitCode.USAGE if code == ExitCode.OK else code
        text = annotation(code, report, message) if self._step.is_one else None
        if text is not None:
            # Not through Rich: a workflow command must stay on one line.
            sys.stderr.write(text)
            sys.stderr.flush()
        return code

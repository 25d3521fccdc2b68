"""One `run`, `launch` or `check` from its options to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bsfind.cli import compared_gpus
from bsfind.cli.exports import Exports, GitHubReporter
from bsfind.cli.progress import TerminalEvents, trial_line
from bsfind.errors import BelowMinimumError, BsfindError, ExitCode, Terminated, UsageError
from bsfind.report import wording
from bsfind.report.compared_gpus import print_compared
from bsfind.report.json import to_json
from bsfind.report.table import print_check, print_report
from bsfind.report.terminal_plot import print_plot
from bsfind.results import Report
from bsfind.search.compared_gpus import ComparedGpus, GpusFinder
from bsfind.search.finder import Finder
from bsfind.search.request import launch_settings_from, settings_from, settings_of_each_gpu
from bsfind.settings import Settings
from bsfind.trial import Trial


def run_session(options: Mapping[str, Any], given: Collection[str]) -> int:
    """Run what a command line asks for, print the answer, return the exit code.

    Args:
        options: the values by the options' names, and the `target`.
        given: the names of the options that the user gave.

    Raises:
        UsageError: the options do not go together, or an export cannot be written.
    """
    _check_output(options)
    if "axis" in options and len(options["gpu"] or ()) > 1:  # `run`
        compared_gpus.check_output(options)
        gpus = settings_of_each_gpu(options["target"], options, given)
        return _Session(gpus[0], options, gpus).run()
    return _Session(settings_from(options["target"], options, given), options).run()


def launch_session(options: Mapping[str, Any], given: Collection[str]) -> int:
    """Run what a command line of `launch` asks for (see `run_session`); `command` is the command."""
    _check_output(options)
    return _Session(launch_settings_from(options["command"], options, given), options).run()


def _check_output(options: Mapping[str, Any]) -> None:
    if options["json"] and options["quiet"]:
        raise UsageError("`--json` and `--quiet` exclude each other: each has stdout to itself")
    if options["plot"] and (options["json"] or options["quiet"]):
        raise UsageError(
            "`--plot` draws below the table, which `--json` and `--quiet` do not print"
        )


class _Session(TerminalEvents):
    """A search from its first trial to the last line.

    Args:
        settings: what to run.
        options: the values of the options by name.
        gpus: what to run on each of a list of GPUs; none: the device of the settings is the only one.
    """

    def __init__(
        self, settings: Settings, options: Mapping[str, Any], gpus: Sequence[Settings] = ()
    ) -> None:
        super().__init__(settings.device, options)
        self._settings = settings
        self._options = options
        command = ["bsfind", *sys.argv[1:]]
        self._finder: Finder | GpusFinder = (
            GpusFinder(gpus, command=command, events=self, fail_under=options["fail_under"])
            if gpus
            else Finder(settings, command=command, events=self, use_lock=not options["no_lock"])
        )
        self._exports = Exports(options["export"] or (), self.terminal)
        self._exports.check()
        self._github = GitHubReporter(self.terminal) if options["github"] else None

    def run(self) -> int:
        """Return the exit code."""
        with self.interruption:
            try:
                with self.line.shown():
                    self._finder.run()
                self.interruption.hold()
            except (KeyboardInterrupt, Terminated):
                self._finder.stopped_by = self.interruption.name
            report = self._finder.report
            is_written = self._exports.finish(report)
            self._print(report)
            sys.stdout.flush()
            failures = [*self._finder.errors, *self._below_minimum(report)]
            code = exit_code(report, failures)
            if not is_written and code == ExitCode.OK:
                code = ExitCode.USAGE
            stopped = self.interruption.exit_code
            code = code if stopped is None else stopped
            if self._github is not None:
                code = self._github.tell(report, code, failures[0].message if failures else "")
        return code

    def trial(self, precision: str, trial: Trial) -> None:
        """Log a trial, and write the exports."""
        if self._options["verbose"]:
            simulated, searched = self._finder.report.simulated, self._settings.workload.searched
            line = trial_line(precision, trial, simulated=simulated, searched=searched)
            self.terminal.note(line)
        self._exports.update(lambda: self._finder.report)

    def _below_minimum(self, report: Report | ComparedGpus) -> list[BelowMinimumError]:
        """Print and return the error of an answer below `--fail-under`."""
        least = self._options.get("fail_under")
        if report.status != "complete" or least is None:
            return []  # more may fit
        if isinstance(report, ComparedGpus):
            error = compared_gpus.below_minimum(report, least)
        else:
            error = _below(report, least)
        if error is None:
            return []
        self.terminal.error(error)
        return [error]

    def _print(self, report: Report | ComparedGpus) -> None:
        for warning in report.warnings:
            self.terminal.warning(warning)
        self._print_errors()
        if self._options["json"]:
            sys.stdout.write(to_json(report))
        elif isinstance(report, ComparedGpus):
            if self._options["quiet"]:
                compared_gpus.print_sizes(report, self.terminal)
            else:
                print_compared(report, self.terminal.out)
            return
        elif self._options["quiet"]:
            self._print_number(report)
        elif self._settings.batch_size is not None:
            print_check(report, self.terminal.out)
        else:
            print_report(report, self.terminal.out)
        if self._options["plot"] and isinstance(report, Report):
            print_plot(report, self.terminal.out)

    def _print_number(self, report: Report) -> None:
        chosen = report.recommendation
        if chosen is None:
            for result in report.results:
                if result.message and not self._finder.errors:
                    self.terminal.note(f"{wording.full_label(result)}: {result.message}")
            return
        sys.stdout.write(f"{chosen.size}\n")
        best = wording.recommended(report)
        if len(report.results) > 1 and best is not None:
            number = f"{report.searched} {chosen.size}"
            self.terminal.note(f"{number} is for {wording.full_label(best)}")

    def _print_errors(self) -> None:
        # The same fault in two precisions is one fault: messages end with `, batch size 5 in fp32`.
        told: set[str] = set()
        for error in self._finder.errors:
            what = error.message.rpartition(", ")[0] or error.message
            if what not in told:
                told.add(what)
                self.terminal.error(error)


def _below(report: Report, least: int) -> BelowMinimumError | None:
    chosen = report.recommendation
    if chosen is None or chosen.size >= least:
        return None
    return BelowMinimumError(
        f"the recommended {report.searched}, {chosen.size:,}, is below `--fail-under {least}`"
    )


def exit_code(report: Report | ComparedGpus, errors: Sequence[BsfindError]) -> int:
    """Return the exit code of a search that was not interrupted.

    Args:
        report: of the search; of a list of GPUs, one that is large enough makes it 0.
        errors: that left it without an answer, or with half of one; not those of single precisions
            where another one gave an answer.
    """
    if errors:
        return errors[0].exit_code
    if report.status == "partial":
        return ExitCode.STOPPED_EARLY
    if isinstance(report, ComparedGpus):
        return ExitCode.OK if report.smallest is not None else ExitCode.DOES_NOT_FIT
    fits = report.recommendation is not None
    if report.search["batch_size"] is not None:
        answered = (result for result in report.results if result.status in ("ok", "nothing_fits"))
        fits = fits and all(result.max_size is not None for result in answered)
    return ExitCode.OK if fits else ExitCode.DOES_NOT_FIT

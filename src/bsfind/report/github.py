"""Summary, outputs and annotation of a step of GitHub Actions.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bsfind.errors import ExitCode, UsageError
from bsfind.report import wording
from bsfind.report.compared_gpus import compared_to_markdown, reasons
from bsfind.report.export import append_text, check_writable
from bsfind.report.markup import to_markdown
from bsfind.report.visible import visible_lines
from bsfind.results import Report
from bsfind.search.compared_gpus import ComparedGpus

_SUMMARY = "GITHUB_STEP_SUMMARY"
_OUTPUT = "GITHUB_OUTPUT"


@dataclass(frozen=True, kw_only=True)
class GitHubStep:
    """The files that the runner reads after a step; None where the environment names none.

    Attributes:
        summary: file of Markdown, shown on the page of the run.
        output: file of `name=value` lines, for later steps.
    """

    summary: Path | None
    output: Path | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> GitHubStep:
        """Return the step that this process runs in.

        Raises:
            UsageError: a file that the environment names cannot be written.
        """

        def file(variable: str) -> Path | None:
            name = environment.get(variable)
            if not name:
                return None
            try:
                check_writable(Path(name))
            except UsageError as error:
                raise UsageError(f"{error.message}, which {variable} names") from None
            return Path(name)

        return cls(summary=file(_SUMMARY), output=file(_OUTPUT))

    @property
    def is_one(self) -> bool:
        """Whether this process runs in a step."""
        return self.summary is not None or self.output is not None

    @property
    def missing(self) -> tuple[str, ...]:
        """Variables of a step of GitHub Actions that this process does not have."""
        files = {_SUMMARY: self.summary, _OUTPUT: self.output}
        return tuple(variable for variable, file in files.items() if file is None)

    def write(self, report: Report | ComparedGpus) -> None:
        """Append to the files, which other commands of the step may have written to.

        Raises:
            UsageError: a file cannot be written.
        """
        summary = (
            compared_to_markdown(report)
            if isinstance(report, ComparedGpus)
            else to_markdown(report)
        )
        for file, text in (
            (self.summary, f"{summary}\n"),
            (self.output, outputs(report)),
        ):
            if file is not None:
                append_text(file, text)


def outputs(report: Report | ComparedGpus) -> str:
    """Return the step's outputs; of a list of GPUs, those of the smallest that is large enough, and its name.

    They are empty without an answer, so that the output of an earlier command is not taken for one.
    """
    if isinstance(report, ComparedGpus):
        smallest = report.smallest
        found = dataclasses.replace(report.cards[0].report, recommendation=None)
        return f"{outputs(smallest.report if smallest else found)}gpu={smallest.gpu if smallest else ''}\n"
    chosen = report.recommendation
    batch_size, precision = (chosen.batch_size, chosen.precision) if chosen else ("", "")
    written = f"batch_size={batch_size}\nprecision={precision}\n"
    return (
        written if report.axis is None else f"{written}axis_size={chosen.size if chosen else ''}\n"
    )


def annotation(code: int, report: Report | ComparedGpus, message: str) -> str | None:
    """Return the command that annotates the run with a failure; None if there is none.

    It may go to stderr: the runner looks for commands in both streams
    (actions/runner, src/Runner.Worker/Handlers/ScriptHandler.cs).

    Args:
        code: exit code of the command.
        report: what was found.
        message: what went wrong, where the report does not say it.
    """
    if code in (ExitCode.OK, ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        return None
    titles = {
        ExitCode.DOES_NOT_FIT: "does not fit",
        ExitCode.TARGET_FAILED: "the model failed",
        ExitCode.STOPPED_EARLY: "stopped early",
        ExitCode.NO_DEVICE: "no usable GPU",
    }
    title = f"bsfind: {titles.get(ExitCode(code), 'failed')}"
    return f"::error title={_escape_property(title)}::{_escape_data(message or _reasons(report))}\n"


def _reasons(report: Report | ComparedGpus) -> str:
    """Return why there is no answer, for each precision."""
    if isinstance(report, ComparedGpus):
        return "\n".join([wording.target(report.cards[0].report), *reasons(report)])
    found = [
        f"{wording.full_label(r)}: {r.message}"
        for r in report.results
        if r.message and not r.remedy
    ]
    return "\n".join([wording.target(report), *found])


# As @actions/core does (toolkit, packages/core/src/command.ts).
def _escape_data(text: str) -> str:
    return visible_lines(text).replace("%", "%25").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")

"""What a step of GitHub Actions is told."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from example_report import example_report
from hypothesis import given
from hypothesis import strategies as st

from bsfind.errors import ExitCode, UsageError
from bsfind.report.github import GitHubStep, annotation, outputs
from bsfind.report.markup import to_markdown
from bsfind.report.visible import visible_lines
from bsfind.results import PrecisionResult, Report


def without_answer() -> Report:
    result = PrecisionResult(
        precision="fp32", status="nothing_fits", message="batch size 1 does not run: 100 % full"
    )
    return dataclasses.replace(example_report(), results=(result,), recommendation=None)


def test_outputs() -> None:
    assert outputs(example_report()) == "batch_size=392\nprecision=amp-bf16\n"


def test_without_an_answer_outputs_are_empty_and_not_those_of_an_earlier_command() -> None:
    assert outputs(without_answer()) == "batch_size=\nprecision=\n"


def test_files_are_appended_to(tmp_path: Path) -> None:
    summary, output = tmp_path / "summary", tmp_path / "output"
    summary.write_text("# Before\n\n")
    output.write_text("other=1\n")
    step = GitHubStep.of({"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(output)})
    assert step.is_one
    assert step.missing == ()
    step.write(example_report())
    step.write(without_answer())
    assert summary.read_text() == (
        f"# Before\n\n{to_markdown(example_report())}\n{to_markdown(without_answer())}\n"
    )
    assert output.read_text() == (
        "other=1\nbatch_size=392\nprecision=amp-bf16\nbatch_size=\nprecision=\n"
    )


def test_outside_of_a_step_nothing_is_written() -> None:
    step = GitHubStep.of({"GITHUB_OUTPUT": ""})
    assert not step.is_one
    assert step.missing == ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")
    step.write(example_report())


def test_a_file_that_cannot_be_written_is_found_out_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GITHUB_OUTPUT names"):
        GitHubStep.of({"GITHUB_OUTPUT": str(tmp_path / "no" / "such" / "folder")})


def test_a_file_that_fails_later_is_an_error_as_well(tmp_path: Path) -> None:
    step = GitHubStep(summary=None, output=tmp_path)  # a folder
    with pytest.raises(UsageError, match="cannot write"):
        step.write(example_report())


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.INTERRUPTED, ExitCode.TERMINATED])
def test_no_annotation_without_a_failure(code: ExitCode) -> None:
    assert annotation(code, example_report(), "") is None


@pytest.mark.parametrize("code", set(ExitCode) - {0, 130, 143})
def test_every_failure_is_annotated(code: ExitCode) -> None:
    text = annotation(code, example_report(), "why")
    assert text is not None
    assert re.fullmatch(r"::error title=bsfind%3A [^:,\n]+::why\n", text)


def test_the_annotation_of_what_does_not_fit_says_why() -> None:
    assert annotation(ExitCode.DOES_NOT_FIT, without_answer(), "") == (
        "::error title=bsfind%3A does not fit::mypkg.models:Net%0A"
        "fp32: batch size 1 does not run: 100 %25 full\n"
    )


def as_the_runner_reads_it(command: str) -> tuple[dict[str, str], str]:
    """Read a command as actions/runner does (ActionCommand.TryParseV2, in Runner.Common)."""
    assert command.startswith("::")
    head, _, data = command.removeprefix("::").partition("::")
    name, _, properties = head.partition(" ")
    assert name == "error"

    def plain(text: str, escapes: dict[str, str]) -> str:
        for written, character in escapes.items():
            text = text.replace(written, character)
        return text

    common = {"%0D": "\r", "%0A": "\n"}
    more = {"%3A": ":", "%2C": ","}
    found = {}
    for pair in properties.split(","):
        key, _, value = pair.strip().partition("=")
        found[key] = plain(value, {**common, **more, "%25": "%"})
    return found, plain(data, {**common, "%25": "%"})


@given(message=st.text(min_size=1))
def test_any_message_arrives(message: str) -> None:
    text = annotation(ExitCode.TARGET_FAILED, example_report(), message)
    assert text is not None
    assert "\n" not in text[:-1]
    assert "\r" not in text
    properties, data = as_the_runner_reads_it(text.removesuffix("\n"))
    assert properties == {"title": "bsfind: the model failed"}
    assert data == visible_lines(message)

"""Texts from outside: whatever shows them, they stay text."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_report import example_report
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bsfind.cli.commands import gpus
from bsfind.cli.console import Terminal
from bsfind.devices import nvml
from bsfind.errors import ExitCode, TargetError
from bsfind.records import GpuProcess, ReportWarning
from bsfind.report.csv import to_csv
from bsfind.report.diff import compare, print_difference
from bsfind.report.github import annotation, outputs
from bsfind.report.json import to_json
from bsfind.report.markup import to_html, to_markdown
from bsfind.report.plot import to_svg
from bsfind.report.table import print_report
from bsfind.report.visible import visible, visible_lines
from bsfind.results import PrecisionResult, Report
from bsfind.trial import Trial

HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x1b\\",
    "\x1b[2J\x1b[31mred",
    "\x9b31m\x85\x90",
    "one\ntwo\r\nthree\rfour",
    "x\n::error::forged",
    "::stop-commands::token",
    "  ::set-output name=batch_size::1",
    "##[error]forged",
    "##vso[task.complete result=Failed]",
    "a\u202eb\u2066c\u2069\u200e",
    "a\u200bb\u2060c\ufeffd\xad",
    "a\u2028b\u2029c",
    "\udcff\ud800",
    "\x00\x08\x7f\x0b\x0c",
    "\U000e0041\U000e007f",
    "</code><img src=x onerror=alert(1)> `` ``` | $x$",
]
ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")
ARABIC = {0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2}
KAITHI = {0x110BD, 0x110CD}


def is_harmless(text: str) -> bool:
    """Tell whether lines of ordinary characters are all there is, none of which is a command."""
    return all(
        character == "\n" or unicodedata.category(character) not in ACTS for character in text
    ) and not any(
        line.lstrip().startswith("::") or "##[" in line or "##vso[" in line
        for line in text.split("\n")
    )


def test_every_character_that_acts_or_is_not_seen_becomes_visible() -> None:
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) in ACTS and code not in ARABIC | KAITHI:
            shown = visible(character)
            assert shown.isascii(), hex(code)
            assert shown.isprintable(), hex(code)
            assert shown.startswith("\\"), hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        r"C:\new\x1b",
        "模型",
        "Größe·→…×",
        "модель",
        "שלום",
        "नमस्ते",
        "❤\ufe0f",
        "a::b",
        "##",
    ],
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert visible(text) == visible_lines(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mx", r"\x1b[31mx"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202e\udcff\U000e0041", r"\u202e\udcff\U000e0041"),
        ("👩\u200d💻", r"👩\u200d💻"),
        (" ::error::x", r" \x3a:error::x"),
        ("x ##[error]", r"x \x23#[error]"),
    ],
)
def test_the_escapes_are_those_of_python(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text() | st.text(alphabet=" :#[\x1b\x07\n\r\t\u202ea"))
def test_any_text_is_harmless(text: str) -> None:
    assert is_harmless(visible(text))
    assert "\n" not in visible(text)
    assert is_harmless(visible_lines(text))
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[1;38;5;9mepoch 1\x1b[0m", "epoch 1"),
        (" 10%|#   |\r 50%|##  |\r100%|####|\r", "100%|####|"),
        ("one\r\n\ttwo\n", "one\n        two\n"),
        ("\x1b[2Kgone", r"\x1b[2Kgone"),
    ],
)
def test_output_of_a_program_loses_its_colours(printed: str, shown: str) -> None:
    assert visible_lines(printed) == shown


# ------------------------------------------------------------------------------------- formats


def report_of(text: str) -> Report:
    report = example_report()
    assert report.device is not None
    results = (
        *(dataclasses.replace(result, weights_dtype=text) for result in report.results),
        PrecisionResult(precision="bf16", status="error", message=text, weights_dtype=text),
    )
    return dataclasses.replace(
        report,
        status="partial",
        message=text,
        device=dataclasses.replace(
            report.device, name=text, other_processes=(GpuProcess(pid=1, name=text, used_bytes=1),)
        ),
        workload={**report.workload, "target": text},
        reproduce=f"bsfind run '{text}'",
        results=results,
        warnings=(ReportWarning(code="coarse", message=text, hint=text),),
        environment={**report.environment, "torch": text},
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_no_format_lets_a_text_act(text: str) -> None:
    report = report_of(text)
    told = annotation(ExitCode.TARGET_FAILED, report, f"first\n{text}")
    assert told is not None
    assert told.count("\n") == 1
    assert is_harmless(told.removeprefix("::error"))
    shown = [to_markdown(report), to_html(report), to_svg(report), to_csv(report), outputs(report)]
    assert all(map(is_harmless, shown))
    document = to_json(report)
    assert document.isascii()
    assert is_harmless(document)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert json.loads(document)["message"] == text
    for part in (*shown, document):
        part.encode()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("width", [30, 120])
def test_no_screen_lets_a_text_act(text: str, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False)
    print_report(report_of(text), console)
    print_difference(compare(report_of(text), report_of(f"{text}!"), 0.02), console)
    assert is_harmless(stream.getvalue())


def test_the_code_span_of_the_command_is_one_line_with_a_longer_fence() -> None:
    report = dataclasses.replace(example_report(), reproduce="bsfind run 'a``b\n# c\x1b'")
    assert to_markdown(report).splitlines()[-1] == r"``` bsfind run 'a``b\n# c\x1b' ```"


def test_json_for_strict_parsers_has_no_lone_surrogate() -> None:
    report = dataclasses.replace(example_report(), message="\\\ud800 \U0001f600 \udcff")
    document = to_json(report)
    assert json.loads(document)["message"] == "\\\\ud800 \U0001f600 \\udcff"


# ------------------------------------------------------------------------------------ terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Terminal, io.StringIO]]:
    shown = io.StringIO()
    monkeypatch.setenv("COLUMNS", "60")
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        yield Terminal(), shown


@pytest.mark.parametrize("text", HOSTILE)
def test_the_terminal_is_safe_whoever_prints(
    text: str, terminal: tuple[Terminal, io.StringIO]
) -> None:
    screen, shown = terminal
    screen.error(TargetError(text, detail=f"{text}\n{text}", hint=text))
    screen.warning(ReportWarning(code="x", message=text, hint=text))
    screen.note(text)
    screen.user_output(text)
    for console in (screen.out, screen.err):
        console.print(f"no one made this visible: {text}")
    assert is_harmless(shown.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("width", ["40", "200"])
def test_names_of_gpus_and_processes(
    text: str, width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = GpuProcess(pid=7, name=text, used_bytes=1 << 20)
    gpu = nvml.Gpu(
        index=0,
        uuid="GPU-1",
        name=text,
        compute_capability="9.0",
        total_bytes=1 << 30,
        free_bytes=1 << 29,
        processes=(process,),
    )
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(nvml, "list_gpus", lambda: [gpu])
    gpus.gpus(json=False)
    gpus.gpus(json=True)
    shown = capsys.readouterr()
    assert is_harmless(shown.out)
    assert is_harmless(shown.err)


def test_a_name_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes(b"\xff\xfe\x1b]0;x")
    try:
        name = nvml._process_name(None, int(Path("/proc/self").resolve().name))
    finally:
        comm.write_bytes(before.strip())
    assert name == "\ufffd\ufffd\x1b]0;x"


def test_a_trial_s_message_at_the_terminal() -> None:
    trial = Trial(batch_size=1, status="error", message="a\x1b[2J\nb")
    result = PrecisionResult(precision="fp32", status="error", trials=(trial,), message="a\x1bb")
    stream = io.StringIO()
    report = dataclasses.replace(example_report(), results=(result,), recommendation=None)
    print_report(report, Console(file=stream, width=80))
    assert is_harmless(stream.getvalue())

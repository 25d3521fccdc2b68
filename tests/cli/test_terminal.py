"""Colours and the line of progress: at a terminal, in a pipe, and when they are not wanted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.cli.processes import bsfind

pytest.importorskip("pty", reason="terminals are tested where there are any")

from terminal import at_a_terminal  # (after the check for pty)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MISTAKE = ("run", "a:b", "--input-shape", "3", "--gpu", "rtx-4091")
PREDICTION = (
    *("check", "bsfind.demo:SmallResNet", "--input-shape", "3,32,32", "--gpu", "t4", "-b", "4"),
    *("--precision", "fp32"),
)
COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;)")


def in_a_pipe(*arguments: str, **environment: str) -> str:
    done = bsfind(*arguments, **{"TERM": "xterm-256color", **environment})
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "environment", "is_coloured"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"TERM": "dumb"}, False),
        (("--color", "never"), {}, False),
        (("--color=never",), {}, False),
        ((), {"BSFIND_COLOR": "never"}, False),
        (("--color", "auto"), {"BSFIND_COLOR": "never"}, True),
    ],
    ids=str,
)
def test_colours_at_a_terminal(
    options: tuple[str, ...], environment: dict[str, str], is_coloured: bool
) -> None:
    code, shown = at_a_terminal(*MISTAKE, *options, **environment)
    assert code == 2
    assert "did you mean `rtx-4090`?" in shown
    assert bool(COLOR.search(shown)) is is_coloured


@pytest.mark.parametrize(
    ("options", "environment", "is_coloured"),
    [
        ((), {}, False),
        (("--color", "always"), {}, True),
        ((), {"FORCE_COLOR": "1"}, True),
        (("--color", "never"), {"FORCE_COLOR": "1"}, False),
    ],
    ids=str,
)
def test_colours_in_a_pipe(
    options: tuple[str, ...], environment: dict[str, str], is_coloured: bool
) -> None:
    shown = in_a_pipe(*MISTAKE, *options, **environment)
    assert "is not a GPU that bsfind knows" in shown
    assert bool(COLOR.search(shown)) is is_coloured
    assert ("\x1b" in shown) is (is_coloured or "FORCE_COLOR" in environment)


def test_a_wrong_color_is_an_error_like_any_other() -> None:
    code, shown = at_a_terminal("run", "a:b", "--color", "pink", NO_COLOR="1")
    assert code == 2
    assert "--color" in shown
    assert "pink" in shown


def test_the_line_of_progress_is_gone_afterwards() -> None:
    """It is drawn over and over in one line, with the cursor hidden meanwhile."""
    code, shown = at_a_terminal(*PREDICTION)
    assert code == 0, shown
    assert "starting" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert shown.index("\x1b[?25h") < shown.index("batch size 4 fits")


@pytest.mark.parametrize("option", ["--no-progress", "--quiet", "--verbose"])
def test_no_line_of_progress(option: str) -> None:
    code, shown = at_a_terminal(*PREDICTION, option, NO_COLOR="1")
    assert code == 0, shown
    assert "starting" not in shown
    assert "\x1b[?25l" not in shown
    assert ("--batch-size 4 (from the command line)" in shown) is (option == "--verbose")


def test_in_a_pipe_there_is_no_progress_and_no_escape() -> None:
    shown = in_a_pipe(*PREDICTION, TERM="xterm")
    assert "\x1b" not in shown
    assert "starting" not in shown
    assert "batch size 4 fits" in shown

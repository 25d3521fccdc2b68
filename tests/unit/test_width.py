"""Sentences at terminals: wrapped between words, and never within a figure."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bsfind.report.width import sentence

TEXT = "The card's 23.5 GiB: 442.0 MiB context, 2.0 GiB free, 6.3 % off, 3.2 x as fast, in 12 s."


def console(width: int, *, terminal: bool = True) -> Console:
    return Console(file=io.StringIO(), width=width, height=25, force_terminal=terminal)


@pytest.mark.parametrize("width", range(20, 100))
def test_no_figure_is_apart_from_its_unit(width: int) -> None:
    lines = sentence(TEXT, console(width)).splitlines()
    assert " ".join(lines) == TEXT
    assert max(map(len, lines)) <= width
    for figure in ("23.5 GiB", "442.0 MiB", "2.0 GiB", "6.3 %", "3.2 x", "12 s"):
        assert any(figure in line for line in lines), figure


def test_further_lines_are_indented() -> None:
    lines = sentence(TEXT, console(40), first="1. ", indent="   ").splitlines()
    assert lines[0].startswith("1. The")
    assert all(line.startswith("   ") and line[3] != " " for line in lines[1:])


def test_in_a_pipe_it_is_one_line() -> None:
    assert sentence(TEXT, console(40, terminal=False), first="- ") == f"- {TEXT}"


def test_what_is_too_long_stays_whole() -> None:
    path = "/a/very/long/path/that/has/no/place/to/break/it/train.py:Net"
    assert path in sentence(f"cannot import `{path}` of 3.0 GiB", console(30))

"""The recipes of docs/ci.md: every command in them is one that bsfind takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import settings_of
from test_cli_surface import SURFACE

RECIPES = Path(__file__).parents[2] / "docs" / "ci.md"


def commands() -> list[list[str]]:
    """Return the arguments of each `bsfind …` in a block of code."""
    text = RECIPES.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"\bbsfind ((?:run|check|diff) [^\n&|)]*)", "\n".join(blocks))
    return [shlex.split(command) for command in found]


def test_there_are_some() -> None:
    assert {command for command, *_ in commands()} == {"run", "check", "diff"}
    assert len(commands()) >= 8


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, *rest = arguments
    assert {argument for argument in rest if argument.startswith("--")} <= SURFACE[command]
    if command != "diff":
        settings_of(arguments)

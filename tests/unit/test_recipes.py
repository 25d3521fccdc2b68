"""The commands of the recipes in docs are ones that bsfind takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import settings_of
from test_cli_surface import SURFACE

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    "ci",
    "inputs",
    "libraries",
    "timm",
    "torchvision",
    "transformers",
    "diffusers",
    "lightning",
    "recipes",
    "several-gpus",
)


def commands() -> list[list[str]]:
    """Return the arguments of each `bsfind …` in a block of code."""
    text = "".join((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in PAGES)
    text = text.replace("\\\n", " ")
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

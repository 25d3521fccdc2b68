"""docs/cli.md: written from the options, and never older than they are."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

from bsfind.cli.main import app
from bsfind.errors import ExitCode

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page() -> str:
    return str(load("build_reference").reference())


def test_the_page_is_current(page: str) -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == page, "run `python docs/build_reference.py`"


def section(page: str, command: str) -> str:
    found = re.search(rf"^## `bsfind {command}\b.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, command
    return found[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_there_as_the_command_line_parses_it(page: str, command: str) -> None:
    """What the page is made from are the declarations; this asks what Typer made of them."""
    text = section(page, command)
    rows = {row.split(" | ")[0]: row for row in text.splitlines() if row.startswith("| `")}
    options = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    named = [flag for option in options for flag in option.opts]
    found = [flag for cell in rows for flag in re.findall(r"(?<=`)-[\w-]+", cell)]
    assert sorted(found) == sorted(named)
    for option in options:
        flag = re.compile(rf"`{option.opts[0]}[ `]")
        row = next(row for cell, row in rows.items() if flag.search(cell))
        assert f"`{option.envvar}`" in row or option.envvar is None
        said = " ".join(option.help.split()).partition(" [default: ")[0]
        assert said.replace("|", "\\|") in row
        if option.default not in (None, False, ""):
            assert f"`{getattr(option.default, 'value', option.default)}`" in row


def test_every_exit_code_is_explained(page: str) -> None:
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(ExitCode)


def test_no_cell_breaks_its_table(page: str) -> None:
    width = 0
    for line in page.splitlines():
        bars = len(re.findall(r"(?<!\\)\|", line))
        if line.startswith("|"):
            assert width in (0, bars), line
            width = bars
        else:
            width = 0


def test_the_readme_links_to_it() -> None:
    assert "(docs/cli.md)" in (ROOT / "README.md").read_text(encoding="utf-8")

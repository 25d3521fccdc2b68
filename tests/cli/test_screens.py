"""docs/screens.md: what is shown at terminals of several widths, captured from real commands."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("pty", reason="terminals are tested where there are any")

DOCS = Path(__file__).resolve().parents[2] / "docs"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("capture_screens", DOCS / "capture_screens.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


capture_screens = load()
WIDTHS: tuple[int, ...] = capture_screens.WIDTHS
COMMANDS: list[str] = [screen.command for screen in capture_screens.SCREENS]


def screens() -> dict[tuple[str, int], str]:
    """Return the screens of the page by command and width."""
    found = {}
    page = (DOCS / "screens.md").read_text(encoding="utf-8")
    for part in re.split(r"^## .*\n\n", page, flags=re.MULTILINE)[1:]:
        command = part.splitlines()[0].strip("`")
        for width, text in re.findall(r"^(\d+) columns:\n\n```text\n(.*?)```", part, re.M | re.S):
            found[command, int(width)] = text
    return found


SCREENS = screens()


def figures(text: str) -> set[str]:
    """Return the numbers of a screen, with their units where they have one."""
    text = re.sub(r"^\(\d+ more lines\)$", "", text, flags=re.MULTILINE)
    return set(re.findall(r"[~<]?\d(?:[\d.,]*\d)?(?: ?(?:[KMGT]iB|%|x)(?!\w))?", text))


def is_to_be_copied(line: str) -> bool:
    return line.startswith("   ") and not line.startswith("    ")


@pytest.mark.parametrize("document", capture_screens.QUOTING, ids=lambda path: path.name)
def test_documents_quote_the_screens(document: Path) -> None:
    text, page = document.read_text(), (DOCS / "screens.md").read_text()
    assert any(f"$ {command}\n{SCREENS[command, 120]}```" in text for command in COMMANDS)
    assert capture_screens.with_screens(text, page) == text


def test_every_command_is_there_at_every_width() -> None:
    assert list(SCREENS) == [(command, width) for command in COMMANDS for width in WIDTHS]
    assert {command.split()[1] for command in COMMANDS} == {
        *("run", "inspect", "check", "explain", "gpus"),
    }


@pytest.mark.parametrize(("command", "width"), SCREENS)
def test_no_line_is_longer_than_the_screen(command: str, width: int) -> None:
    for line in SCREENS[command, width].splitlines():
        copied = command.startswith("bsfind explain") and is_to_be_copied(line)
        assert len(line) <= width or copied, line


@pytest.mark.parametrize("command", COMMANDS)
def test_no_number_is_cut(command: str) -> None:
    """What a narrow screen says of a figure, the widest says too: a part of one it does not say."""
    widest = figures(SCREENS[command, max(WIDTHS)])
    assert len(widest) > 2
    for width in WIDTHS:
        text = SCREENS[command, width]
        assert "…" not in text
        # A plot has the ticks that its width has room for, and narrow tables of modules add columns up.
        assert figures(text) <= widest or "--plot" in command or "inspect" in command
        assert not re.search(r"\d\n *(?:[KMGT]iB|%)", text), "a number apart from its unit"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", [c for c in COMMANDS if "explain" in c or "4091" in c])
def test_the_page_is_current(command: str, width: int, tmp_path: Path) -> None:
    """Of the screens that do not depend on the torch and the GPU of this machine."""
    (tmp_path / "train.log").write_text(capture_screens.LOG, encoding="utf-8")
    shown = capture_screens.capture(command, width, tmp_path)
    assert shown == SCREENS[command, width], "run `python docs/capture_screens.py`"

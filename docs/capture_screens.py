"""Writes docs/screens.md, what commands show at terminals of 60, 80 and 120 columns, and quotes of them.

    python docs/capture_screens.py

Each command runs in a pseudo-terminal of that width, without colours. Nothing is cut or edited, except
that of long lists the first lines are kept. Linux and macOS only.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "screens.md"
QUOTING = (Path(__file__).parents[1] / "README.md", Path(__file__).parent / "inspect.md")
"""Documents that quote some of the screens."""

WIDTHS = (60, 80, 120)

LOG = """\
Epoch 0:   0%|          | 0/1251 [00:00<?, ?it/s]
Traceback (most recent call last):
  File "/home/me/project/train.py", line 118, in <module>
    loss = model(images)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a total capacity of \
23.64 GiB of which 1.12 GiB is free. Including non-PyTorch memory, this process has 22.51 GiB memory in \
use. Of the allocated memory 20.86 GiB is allocated by PyTorch, and 1.20 GiB is reserved by PyTorch but \
unallocated. If reserved but unallocated memory is large try setting \
PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.
"""
"""What the screen of `explain` explains."""

_DEMO = "bsfind.demo:SmallResNet --input-shape 3,96,96"
_INTRODUCTION = """\
# What bsfind shows

Captured by `docs/capture_screens.py` at terminals of 60, 80 and 120 columns, without colours. Where there
is no room, columns go; figures are never cut. Commands to be copied stay one line.
"""


@dataclass(frozen=True)
class Screen:
    """One command whose output is shown.

    Attributes:
        title: what it is about.
        command: the command line.
        lines: how many lines are kept; None: all.
    """

    title: str
    command: str
    lines: int | None = None


SCREENS = (
    Screen("A prediction", f"bsfind run {_DEMO} --gpu rtx-4090"),
    Screen("Remedies compared", f"bsfind run {_DEMO} --gpu t4 --precision amp --compare checkpointing,sgd"),
    Screen("What memory is made of", f"bsfind inspect {_DEMO} --gpu t4 --batch-size 256 --precision amp"),
    Screen("Memory against batch size", f"bsfind run {_DEMO} --gpu t4 --precision amp --plot"),
    Screen("Does it fit?", f"bsfind check {_DEMO} --gpu t4 --batch-size 4096"),
    Screen("An out-of-memory error explained", "bsfind explain train.log"),
    Screen("GPUs", "bsfind gpus", lines=16),
    Screen("A mistake", f"bsfind run {_DEMO} --gpu rtx-4091"),
)  # fmt: skip


PICTURE = f"bsfind run {_DEMO} --gpu rtx-4090 --export memory.svg --plot"
"""What draws the picture that docs/ci.md shows."""


def capture(command: str, width: int, folder: Path) -> str:
    """Run a command in a pseudo-terminal and return what it showed.

    Args:
        command: begins with `bsfind`.
        width: columns.
        folder: where it runs.
    """
    leader, follower = pty.openpty()
    # struct winsize: rows, columns, and two that nobody uses
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    _, *arguments = shlex.split(command)
    with subprocess.Popen(
        [sys.executable, "-m", "bsfind", *arguments],
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=_environment(os.environ),
    ):
        os.close(follower)
        shown = _read(leader)
    os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a plain terminal on a machine without a GPU."""
    foreign = ("BSFIND_", "COLUMNS", "LINES", "FORCE_COLOR", "_TYPER", "GITHUB_", "PYTORCH_")
    kept = {name: value for name, value in inherited.items() if not name.startswith(foreign)}
    plain = {
        "TERM": "xterm",
        "NO_COLOR": "1",
        "BSFIND_NO_PROGRESS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**kept, **plain, "PYTHONIOENCODING": "utf-8"}


def _read(leader: int) -> bytes:
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            return shown
        if not part:
            return shown
        shown += part


def page() -> str:
    """Run all commands and return the page."""
    parts = [_INTRODUCTION]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.log").write_text(LOG, encoding="utf-8")
        for screen in SCREENS:
            parts.append(f"## {screen.title}\n\n`{screen.command}`\n")
            for width in WIDTHS:
                shown = _first(capture(screen.command, width, folder), screen.lines)
                parts.append(f"{width} columns:\n\n```text\n{shown}```\n")
    return "\n".join(parts)


def _first(text: str, count: int | None) -> str:
    lines = text.splitlines(keepends=True)
    if count is None or len(lines) <= count:
        return text
    return "".join(lines[:count]) + f"({len(lines) - count} more lines)\n"


def with_screens(text: str, written: str) -> str:
    """Return a document with the screens that it quotes as the page has them, at 120 columns.

    Args:
        text: the document; a screen follows the line `$ COMMAND` in a code block.
        written: text of the page.
    """
    for screen in SCREENS:
        command = re.escape(screen.command)
        shown = re.search(
            rf"`{command}`.*?^{WIDTHS[-1]} columns:\n\n```text\n(.*?)```", written, re.M | re.S
        )
        assert shown is not None
        quoted = rf"(?<=^\$ {command}\n).*?(?=^```)"
        text = re.sub(quoted, shown[1].replace("\\", r"\\"), text, count=1, flags=re.M | re.S)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    for file in QUOTING:
        quoting = with_screens(file.read_text(encoding="utf-8"), PAGE.read_text(encoding="utf-8"))
        file.write_text(quoting, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "bsfind", *shlex.split(PICTURE)[1:]],
        check=True,
        cwd=PAGE.parent,
        env=_environment(os.environ),
    )

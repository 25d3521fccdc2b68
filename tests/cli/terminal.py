"""bsfind at a terminal: all its streams are a pseudo-terminal's."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

__all__ = ["all_that_was_shown", "at_a_terminal"]

ROOT = Path(__file__).resolve().parents[2]


def at_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run bsfind; returns its exit code and all that the terminal was sent, escapes included."""
    leader, follower = pty.openpty()
    foreign = ("TERM", "COLUMNS", "NO_COLOR", "_TYPER")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    with subprocess.Popen(
        [sys.executable, "-m", "bsfind", *arguments],
        cwd=ROOT,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm-256color", **environment},
    ) as process:
        os.close(follower)
        shown = all_that_was_shown(leader)
    return process.returncode, shown


def all_that_was_shown(leader: int) -> str:
    """Read what a pseudo-terminal was sent until its other end is closed, and close this one."""
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux says EIO where the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return shown.decode()

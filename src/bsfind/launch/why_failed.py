"""Why a command ended with an error: what its exit status and the last lines that it printed say."""

from __future__ import annotations

import re
import signal

_RAISED = re.compile(r"(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception|Exit|Interrupt)): ?(.*)")
_MISTAKES = re.compile(
    r"(Type|Name|Attribute|Import|ModuleNotFound|NotImplemented|Syntax|FileNotFound)Error"
)
# What torchrun writes, and `accelerate launch` with it.
_ROOT_CAUSE = re.compile(
    r"^Root Cause .*?^ *rank *: *(\d+) .*?^ *exitcode *: *(-?\d+) ", re.MULTILINE | re.DOTALL
)


def why_it_failed(status: int | None, last_lines: str) -> tuple[str, bool]:
    """Return why a command ended with an error, and whether it may run at another batch size.

    Args:
        status: its exit status, negative for a signal; None if it is not known.
        last_lines: what it printed last.
    """
    cause = _ROOT_CAUSE.search(last_lines)
    if cause is not None:
        how, may_run = _how_it_ended(int(cause[2]))
        return f"rank {cause[1]} {how}", may_run
    for line in reversed(last_lines.splitlines()):
        found = _RAISED.match(line.strip())
        if found is not None:
            told = f"{found[1]}: {first_line(found[2])}" if found[2] else found[1]
            return told, _MISTAKES.fullmatch(found[1]) is None
    if status is None:
        return "it ended with an unknown status", False
    how, may_run = _how_it_ended(status)
    return f"it {how}", may_run


def _how_it_ended(status: int) -> tuple[str, bool]:
    if status < 0:
        name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
        return f"was killed by {name}", False
    # 2 is what `argparse` exits with, 126 and 127 are a shell's.
    return f"exited with status {status}", status not in (2, 126, 127)


def first_line(text: str) -> str:
    """Return the first line of a text, or as much of it as a message takes."""
    return text.strip().partition("\n")[0][:300]

"""Becomes the user's command, below a supervisor that keeps hold of all its processes."""

from __future__ import annotations

import os
import signal
import sys

from bsfind.worker.processes import supervise

_NOT_STARTED = 127  # what a shell says


def main() -> int:
    """Run the command of this process's arguments; returns only if that is not possible."""
    supervise()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    # Python ignores it; the command inherits what is ignored.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    command = sys.argv[1:]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
    return _NOT_STARTED

"""The `bsfind` command, and `python -m bsfind`.

The imports take a while. A KeyboardInterrupt in the middle of one can show a traceback, come out as another
exception (class creation wraps it), or be swallowed. Until a search runs there is nothing to end and nothing
to lose: a signal just ends the process. The search has its own handlers (`cli/interruption.py`).
"""

import os
import signal


def _leave_at_once() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: os._exit(128 + received))


def main() -> None:
    """Run the command line and leave with its exit code."""
    _leave_at_once()
    from bsfind.cli.main import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()

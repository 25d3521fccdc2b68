"""Ctrl-C, SIGTERM and SIGHUP during a search: the first one ends it, further ones change nothing.

The first raises wherever the search is; everything that it has started is then ended, and what is known
is written and printed. A second one in the middle of that would lose the partial report, so it is ignored;
another Ctrl-C after 5 s exits immediately.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from bsfind.errors import Terminated

_GRACE_S = 5.0
"""How long an interrupted search may take to end before the next signal ends it on the spot."""

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interruption:
    """Handles the signals inside of a `with` block.

    A signal that was ignored before (`nohup`, a job in the background) stays ignored.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._since = 0.0
        self._is_held = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # After an interruption the process only has to exit.
            signal.signal(number, handler if self._received is None else signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            self._since = time.monotonic()
            if not self._is_held:
                self.check()
        elif time.monotonic() - self._since > _GRACE_S:
            os._exit(128 + number)

    def check(self) -> None:
        """Raise again: Python drops what is raised in a destructor, for example.

        Raises:
            KeyboardInterrupt, Terminated: a signal has arrived.
        """
        if self._received is signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise Terminated

    def hold(self) -> None:
        """Stop raising: what is left to do is short and must not be lost."""
        self._is_held = True

    @property
    def exit_code(self) -> int | None:
        """The exit code for the signal (128 + its number); None without one."""
        return None if self._received is None else 128 + self._received

    @property
    def name(self) -> str:
        """How the report calls it; "" without a signal."""
        if self._received is signal.SIGINT:
            return "interrupted"
        return f"terminated ({self._received.name})" if self._received else ""

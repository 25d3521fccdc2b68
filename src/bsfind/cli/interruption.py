"""Ctrl-C, SIGTERM and SIGHUP during a search: the first one ends it, further ones change nothing.

The first raises wherever the search is; everything that it has started is then ended, and what is known
is written and printed. A second one in the middle of that would lose what the first was to leave behind,
so it waits; who still presses Ctrl-C after some seconds wants to be out.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from bsfind.errors import Terminated

_PATIENCE_S = 5.0
"""How long an interrupted search may take to end before the next signal ends it on the spot."""

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interruption:
    """Takes the signals over while it is entered.

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
            # Interrupted, all that is left is to leave.
            signal.signal(number, handler if self._received is None else signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            self._since = time.monotonic()
            if not self._is_held:
                self.check()
        elif time.monotonic() - self._since > _PATIENCE_S:
            os._exit(128 + number)

    def check(self) -> None:
        """Raise again what was raised and got lost: in a destructor, say, where Python drops it.

        Raises:
            KeyboardInterrupt, Terminated: a signal has arrived.
        """
        if self._received is signal.SIGINT:
            raise KeyboardInterrupt
        if self._received is not None:
            raise Terminated

    def hold(self) -> None:
        """Let signals wait from now on: what is left to do is short and must not be lost."""
        self._is_held = True

    @property
    def exit_code(self) -> int | None:
        """What a shell makes of the signal (128 + its number); None without one."""
        return None if self._received is None else 128 + self._received

    @property
    def name(self) -> str:
        """What the report says."""
        if self._received is signal.SIGINT:
            return "interrupted"
        return f"terminated ({self._received.name})" if self._received else ""

"""Ctrl-C, SIGTERM and SIGHUP during a search: the first one ends it; what is known is written and printed.

The first raises wherever the search is; everything that it has started is then ended. A second one in the
middle of that would lose the partial report, and wrappers pass on what the terminal has sent to all: it ends
the process as soon as 5 s have passed since the first. So does a single one while only the answer is left to
be written. Whatever else an interrupted search waits for, it ends after 30 s.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

from bsfind.errors import Terminated

_GRACE_S = 5.0
_LAST_RESORT_S = 30.0

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
        if self._received is None:  # else the process only has to exit
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            self._since = time.monotonic()
            self._end_within(_GRACE_S if self._is_held else _LAST_RESORT_S)
            if not self._is_held:
                self.check()
        else:
            self._end_within(_GRACE_S)

    def _end_within(self, seconds: float) -> None:
        """End the process so many seconds after the first signal if it has not ended by then."""
        assert self._received is not None
        code = 128 + self._received
        left = self._since + seconds - time.monotonic()
        if left <= 0:
            os._exit(code)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
            signal.setitimer(signal.ITIMER_REAL, left)

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

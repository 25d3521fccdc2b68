"""Signals during a search, in processes that hang at every place: none of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")

START = """
import os, signal, sys, time
from bsfind.cli import interruption
from bsfind.cli.interruption import Interruption
from bsfind.errors import Terminated
interruption._GRACE_S, interruption._LAST_RESORT_S = 0.5, 1.5
for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:  # a job in the background ignores some
    signal.signal(number, signal.SIG_DFL)
def hang():
    print(flush=True)
    os.open(sys.argv[1], os.O_WRONLY)  # a FIFO that nobody reads
"""
SEARCH = """
with Interruption() as interruption:
    try:
        hang()
    except (KeyboardInterrupt, Terminated):
        print(interruption.name, flush=True)
    {then}
{after}
sys.exit(interruption.exit_code or 0)
"""
HELD = "with Interruption() as interruption:\n    interruption.hold()\n    hang()\n"


@pytest.mark.parametrize(
    ("code", "sent", "status", "at_most_s"),
    [
        (SEARCH.format(then="", after=""), [signal.SIGTERM], 143, 0.4),
        (SEARCH.format(then="hang()", after=""), [signal.SIGTERM], 143, 3.0),
        (SEARCH.format(then="hang()", after=""), [signal.SIGTERM, signal.SIGTERM], 143, 1.2),
        (SEARCH.format(then="time.sleep(0.7); hang()", after=""), [signal.SIGINT] * 2, 130, 1.3),
        (SEARCH.format(then="", after="hang()"), [signal.SIGTERM, signal.SIGINT], 143, 1.2),
        (HELD, [signal.SIGINT], 130, 1.2),
        (HELD, [signal.SIGHUP], 129, 1.2),
    ],
    ids=["ends", "hangs", "a second", "a late second", "hangs at exit", "held", "held, hung up"],
)
def test_a_process_ends(
    code: str,
    sent: list[signal.Signals],
    status: int,
    at_most_s: float,
    tmp_path: Path,
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [sys.executable, "-c", START + code, str(fifo)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    before = time.monotonic()
    for number in sent:
        process.send_signal(number)
        time.sleep(0.05)
    process.communicate(timeout=20)
    assert process.returncode == status
    assert time.monotonic() - before < at_most_s + 1.0  # a busy machine is no failure

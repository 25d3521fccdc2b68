"""Ctrl-C at any moment: exit 130, no traceback, no process left behind, and what is known is kept."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.gpu.gpu import Gpu, Result
from tests.gpu.processes import wait_for
from tests.gpu.reports import check_schema
from tests.gpu.staged import StagedSearch

pytestmark = pytest.mark.faults

START_UP = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.5)
"""Seconds after the handlers are there: imports, options, the first worker, torch, the device …"""


def handles_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM: Python by itself has none."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def check_is_clean(done: Result, code: int, said: str) -> None:
    """No traceback, the right status, and a valid report if the search had begun."""
    assert done.code == code, (done.out, done.err)
    assert "Traceback" not in done.err
    assert "Exception" not in done.err
    if done.out:
        check_schema(done.report)
        assert done.report["status"] == "partial"
        assert done.report["message"] == said


@pytest.mark.parametrize("seconds", START_UP)
def test_while_it_starts(gpu: Gpu, seconds: float) -> None:
    with StagedSearch(gpu, "first trial") as search:
        wait_for(lambda: handles_signals(search.process.pid))
        time.sleep(seconds)
        search.process.send_signal(signal.SIGINT)
        check_is_clean(search.end(), 130, "interrupted")


@pytest.mark.parametrize("moment", ["loading", "first trial", "second trial", "confirmation"])
def test_in_the_middle_of_a_search(gpu: Gpu, moment: str) -> None:
    arguments = ("--max-batch-size", "6", "--export", "report.json")
    with StagedSearch(gpu, moment, *arguments) as search:
        search.reach()
        search.process.send_signal(signal.SIGINT)
        done = search.end()
    check_is_clean(done, 130, "interrupted")
    assert Path(gpu.folder, "report.json").read_text() == done.out
    ran = [trial["batch_size"] for trial in done.only["trials"]]
    expected = {"loading": [], "first trial": [], "second trial": [5], "confirmation": [5, 6]}
    assert ran == expected[moment]
    assert done.only["max_batch_size"] == (ran[-1] if ran else None)


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        ([signal.SIGINT] * 5, 130, "interrupted"),
        ([signal.SIGINT, signal.SIGTERM], 130, "interrupted"),
        ([signal.SIGTERM, signal.SIGINT], 143, "terminated (SIGTERM)"),
        ([signal.SIGHUP], 129, "terminated (SIGHUP)"),
    ],
    ids=["five Ctrl-C", "Ctrl-C and SIGTERM", "SIGTERM and Ctrl-C", "SIGHUP"],
)
def test_several_signals_in_quick_succession(
    gpu: Gpu, sent: list[signal.Signals], code: int, said: str
) -> None:
    with StagedSearch(gpu, "second trial", "--max-batch-size", "6") as search:
        search.reach()
        for number in sent:
            search.process.send_signal(number)
            time.sleep(0.02)  # two of a kind that are pending at once are one
        done = search.end()
    check_is_clean(done, code, said)
    assert done.only["max_batch_size"] == 5


def test_while_a_report_is_exported(gpu: Gpu) -> None:
    """A FIFO, which takes the report once, at the end."""
    fifo = Path(gpu.folder, "report.json")
    os.mkfifo(fifo)
    exported: list[str] = []
    with StagedSearch(
        gpu, "second trial", "--max-batch-size", "6", "-v", "--export", str(fifo)
    ) as search:
        assert search.process.stderr is not None
        # `-v` tells first where the options are from.
        assert any("batch size 5: ran" in line for line in search.process.stderr)
        time.sleep(0.3)
        search.process.send_signal(signal.SIGINT)
        # A thread, since the export that is interrupted may still find this reader, or not.
        threading.Thread(target=lambda: _read_all(fifo, exported), daemon=True).start()
        done = search.end()
    check_is_clean(done, 130, "interrupted")
    wait_for(lambda: exported[-1:] == [done.out], seconds=10)
    assert done.only["max_batch_size"] == 5


def _read_all(fifo: Path, texts: list[str]) -> None:
    while True:
        texts.append(fifo.read_text())


def test_a_signal_that_was_ignored_stays_ignored(gpu: Gpu) -> None:
    """`nohup bsfind`, or `bsfind &` in a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits it
    try:
        search = StagedSearch(gpu, "first trial", "--max-batch-size", "6")
    finally:
        signal.signal(signal.SIGHUP, before)
    with search:
        search.reach()
        search.process.send_signal(signal.SIGHUP)
        search.go_on()
        assert search.end().code == 0

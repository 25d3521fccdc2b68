"""When the files of `--export` are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_report import example_report

from bsfind.cli import exports
from bsfind.cli.console import Terminal
from bsfind.cli.exports import Exports
from bsfind.errors import UsageError
from bsfind.records import Report

JSON, PNG = Path("report.json"), Path("picture.PNG")


class Clock:
    """Time that passes when something is written, and between trials."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Disk:
    """Counts what is written, and is full at times."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.written = {JSON: 0, PNG: 0}
        self.is_full = False

    def write(self, report: Report, path: Path) -> None:
        self.clock.now_s += 0.3 if path == PNG else 0.001
        if self.is_full:
            raise UsageError(f"cannot write `{path}`: No space left on device")
        self.written[path] += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disk(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(clock)
    monkeypatch.setattr(exports, "write_report", disk.write)
    return disk


def test_every_trial_is_written(clock: Clock, disk: Disk) -> None:
    files = Exports([JSON, PNG], Terminal(), clock)
    for _ in range(10):
        files.update(example_report)
        clock.now_s += 5.0
    assert disk.written == {JSON: 10, PNG: 10}


def test_drawing_takes_a_tenth_of_the_time_where_trials_are_quick(clock: Clock, disk: Disk) -> None:
    files = Exports([JSON, PNG], Terminal(), clock)
    started_s = clock.now_s
    for _ in range(1000):
        files.update(example_report)
        clock.now_s += 0.01
    assert disk.written[JSON] == 1000
    assert disk.written[PNG] > 1
    assert disk.written[PNG] * 0.3 <= 0.1 * (clock.now_s - started_s) + 0.3


def test_the_end_is_always_written(clock: Clock, disk: Disk) -> None:
    files = Exports([PNG], Terminal(), clock)
    files.update(example_report)
    files.update(example_report)
    assert disk.written[PNG] == 1
    assert files.finish(example_report())
    assert disk.written[PNG] == 2


def test_a_report_is_not_made_for_nothing(clock: Clock, disk: Disk) -> None:
    def never() -> Report:
        raise AssertionError

    Exports([], Terminal(), clock).update(never)


def test_a_full_disk_is_told_once_and_may_be_over_at_the_end(
    clock: Clock, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    files = Exports([JSON], Terminal(), clock)
    disk.is_full = True
    files.update(example_report)
    files.update(example_report)
    assert capsys.readouterr().err.count("No space left") == 1
    assert not files.finish(example_report())
    disk.is_full = False
    assert files.finish(example_report())

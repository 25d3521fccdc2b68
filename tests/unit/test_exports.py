"""When and how the files of `--export` and those of GitHub are written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from example_report import example_report

from bsfind.cli import exports
from bsfind.cli.console import Terminal
from bsfind.cli.exports import Exports
from bsfind.errors import UsageError
from bsfind.report import export
from bsfind.report.export import append_text, check_writable, write_report
from bsfind.report.github import GitHubStep
from bsfind.report.json import to_json
from bsfind.results import Report

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


def written_to(path: Path) -> str:
    write_report(example_report(), path)
    return to_json(example_report())


@pytest.mark.parametrize("name", ["report.json", "n" * 250 + ".json"])
def test_a_file_is_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    check_writable(path)
    assert not path.exists()
    path.write_text("before")
    path.chmod(0o640)
    assert written_to(path) == path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed(tmp_path: Path) -> None:
    link, target = tmp_path / "link.json", tmp_path / "target"
    link.symlink_to(target)
    check_writable(link)
    assert written_to(link) == target.read_text()
    assert link.is_symlink()


def loop(path: Path) -> None:
    path.symlink_to(path)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("name", "make", "why"),
    [
        ("r.json", loop, "symbolic links"),
        ("r.json", Path.mkdir, "it is a folder"),
        ("r.json", bound_socket, "it is a socket"),
        ("r.json", lambda path: path.symlink_to(path.parent), "it is a folder"),
        ("r.json", lambda path: path.symlink_to("not/there"), "there is no folder"),
        ("n" * 256 + ".json", lambda _: None, "name too long"),
        ("not/there/r.json", lambda _: None, "there is no folder"),
        ("file/r.json", lambda path: path.parent.touch(), "Not a directory"),
    ],
    ids=["loop", "folder", "socket", "link to folder", "dangling", "long", "no folder", "file"],
)
@pytest.mark.usefixtures("quick")
def test_what_cannot_be_written_is_told_before_the_search(
    tmp_path: Path, name: str, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(UsageError, match=why):
        check_writable(path)
    with pytest.raises(UsageError):
        write_report(example_report(), path)
    variables = {"GITHUB_OUTPUT": str(path)}
    with pytest.raises(UsageError, match=r"which GITHUB_OUTPUT names"):
        GitHubStep.of(variables)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.touch(0o444)
    with pytest.raises(UsageError, match="no permission"):
        check_writable(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_READER_S", 0.2)
    monkeypatch.setattr(export, "_LONGEST_S", 0.2)


@pytest.mark.usefixtures("quick")
def test_a_fifo_is_written_once_and_waits_for_nobody_long(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    os.mkfifo(path)
    check_writable(path)
    files = Exports([path], Terminal())
    files.update(lambda: pytest.fail("a report for nothing"))
    assert not files.finish(example_report())  # nobody reads
    with pytest.raises(UsageError, match="nobody reads it"):
        append_text(path, "x")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    assert files.finish(example_report())
    reader.join(timeout=10)
    assert read == [to_json(example_report())]


@pytest.mark.usefixtures("quick")
def test_readers_that_leave_or_stop(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UsageError, match="its reader has not read all"):
        append_text(path, "x" * 2_000_000)
    threading.Timer(0.1, os.close, [reader]).start()
    with pytest.raises(UsageError, match="Broken pipe"):
        append_text(path, "x" * 2_000_000)


@pytest.mark.parametrize("leads_to", ["/dev/stdout", "/proc/self/fd/1", "its name", "/dev/fd/1"])
def test_stdout_that_is_a_file_keeps_what_is_written_to_it(tmp_path: Path, leads_to: str) -> None:
    out, link = tmp_path / "out.txt", tmp_path / "r.json"
    link.symlink_to(out if leads_to == "its name" else leads_to)
    code = (
        "import sys; from pathlib import Path; from bsfind.report import export\n"
        "export._written = lambda *_: 'report\\n'\n"
        "print('before'); export.write_report(None, Path(sys.argv[1])); print('after')"
    )
    with out.open("w") as stream:
        subprocess.run([sys.executable, "-c", code, str(link)], stdout=stream, check=True)
    assert out.read_text() == "before\nreport\nafter\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.txt", "r.json"]


def test_a_full_device(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.symlink_to("/dev/full")
    with pytest.raises(UsageError, match="No space left"):
        write_report(example_report(), path)

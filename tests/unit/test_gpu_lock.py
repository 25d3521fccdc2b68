"""The lock of a GPU: one holder, no stale locks, safe among several users."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bsfind.errors import TimeLimitError
from bsfind.failures import gpu_lock
from bsfind.failures.gpu_lock import GpuLock, lock_folder, wait_for, warning_without
from bsfind.search.time_budget import TimeBudget

pytest.importorskip("fcntl")

UUID = "fa4e0000-0000"


def hold_in_another_process(folder: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, time; from pathlib import Path; from bsfind.failures.gpu_lock import GpuLock\n"
        "lock = GpuLock(sys.argv[1], Path(sys.argv[2]))\n"
        "print(lock.take(), flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, UUID, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_one_at_a_time(tmp_path: Path) -> None:
    first, second = GpuLock(UUID, tmp_path), GpuLock(UUID, tmp_path)
    with first:
        assert first.take()
        assert first.take()  # still
        assert not second.take()
        assert second.holder == os.getpid()
        assert GpuLock("another", tmp_path).take()
    assert second.take()
    second.release()
    second.release()
    assert first.holder is None


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    process = hold_in_another_process(tmp_path)
    lock = GpuLock(UUID, tmp_path)
    assert not lock.take()
    assert lock.holder == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lock.holder is None  # though its note is still there
    with lock:
        assert lock.take()
        assert lock.holder == os.getpid()


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with GpuLock(UUID, tmp_path) as lock:
        assert lock.take()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert GpuLock(UUID, tmp_path).take()
    child.communicate(b"\n")


def test_the_file_is_for_all_users_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with GpuLock(UUID, tmp_path) as lock:
            assert lock.take()
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o666


def test_a_file_that_can_only_be_read_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's file is that was made by a process which died before it opened it to all."""
    open_file = os.open

    def refuse_to_write(path: Path, flags: int, *more: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, flags, *more)

    Path(tmp_path, f"bsfind-{UUID}.lock").touch()
    monkeypatch.setattr(os, "open", refuse_to_write)
    with GpuLock(UUID, tmp_path) as lock:
        assert lock.take()
        assert not GpuLock(UUID, tmp_path).take()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    Path(tmp_path, f"bsfind-{UUID}.lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        GpuLock(UUID, tmp_path).take()
    assert precious.read_text() == "precious"


def what_is_in(folder: Path) -> dict[str, tuple[int, ...]]:
    found = {entry.name: entry.lstat() for entry in folder.iterdir()}
    return {n: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for n, s in found.items()}


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 8 << 30)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def hard_link(path: Path) -> None:
    path.with_name("precious").write_text("12\n")  # as a lock file would be
    path.hardlink_to(path.with_name("precious"))


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        bound_socket,
        hard_link,
        sparse,
        lambda path: path.write_text("precious"),
        lambda path: path.write_text("12"),
        lambda path: path.write_text("12\n" + "\0" * 40),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.with_name("not there")),
    ],
    ids=[
        "FIFO",
        "folder",
        "socket",
        "hard link",
        "sparse",
        "text",
        "line",
        "long",
        "device",
        "link",
    ],
)
@pytest.mark.parametrize("is_held", [False, True], ids=["free", "held"])
def test_what_is_no_lock_file_is_refused_at_once_and_stays_as_it_is(
    tmp_path: Path, make: Callable[[Path], object], is_held: bool
) -> None:
    path = tmp_path / f"bsfind-{UUID}.lock"
    make(path)
    before = what_is_in(tmp_path)
    with contextlib.ExitStack() as held:
        if is_held and path.is_file():
            stream = held.enter_context(path.open("rb"))
            gpu_lock.fcntl.flock(stream, gpu_lock.fcntl.LOCK_EX)
        lock = GpuLock(UUID, tmp_path)
        assert lock.holder is None
        warning = gpu_lock.hold(lock, lambda: None, lambda _: None, alone=True)
        assert warning is not None
        assert warning.code == "no_lock"
        assert str(path) in warning.message
        assert gpu_lock.hold(lock, lambda: None, lambda _: None, alone=False) is not None
    assert what_is_in(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to make a device")
def test_a_device_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / f"bsfind-{UUID}.lock"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except OSError:
        pytest.skip("no devices can be made here")
    with pytest.raises(OSError, match="not a regular file"):
        GpuLock(UUID, tmp_path).take()


def test_a_uuid_is_no_path(tmp_path: Path) -> None:
    with GpuLock("../../etc/passwd", tmp_path) as lock:
        assert lock.take()
        (file,) = tmp_path.iterdir()
    assert file.name.startswith("bsfind-")


def test_without_file_locks_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "fcntl", None)
    with pytest.raises(OSError, match="no file locks"):
        GpuLock(UUID, tmp_path).take()
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_when_the_other_is_done(tmp_path: Path) -> None:
    other, said = GpuLock(UUID, tmp_path), []
    assert other.take()

    def on_wait(message: str) -> None:
        said.append(message)
        threading.Timer(0.3, other.release).start()

    with GpuLock(UUID, tmp_path) as lock:
        wait_for(lock, TimeBudget(1.0, None).check, on_wait)
        assert not other.take()
    assert said == [f"another bsfind (PID {os.getpid()}) is measuring on this GPU; waiting"]


def test_waiting_ends_with_the_time_budget(tmp_path: Path) -> None:
    with GpuLock(UUID, tmp_path) as other, GpuLock(UUID, tmp_path) as lock:
        assert other.take()
        with pytest.raises(TimeLimitError, match="time budget"):
            wait_for(lock, TimeBudget(1.0, 0.1).check, lambda _: None)


def test_who_goes_ahead_is_told_who_else_is_there(tmp_path: Path) -> None:
    assert "nothing keeps another bsfind off" in warning_without(GpuLock(UUID, tmp_path)).message
    with GpuLock(UUID, tmp_path) as other:
        assert other.take()  # the warning has kept nothing
        warning = warning_without(GpuLock(UUID, tmp_path))
    assert f"another bsfind (PID {os.getpid()}) is measuring" in warning.message


def test_the_folder_is_the_same_for_all_users() -> None:
    assert lock_folder({"TMPDIR": "/home/me/tmp"}) == lock_folder({})
    assert lock_folder({"BSFIND_LOCK_DIR": "/shared/locks"}) == Path("/shared/locks")

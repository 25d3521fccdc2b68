"""One bsfind at a time measures on a GPU: a second one would find less memory, and slower steps.

The lock is a `flock` on a small file for each GPU, in a folder that all users of the machine share. The
system releases it when the process that holds it ends: there are no stale locks. The files stay, since
removing one that somebody waits for would make two locks. Anybody can put something else in their place: what
is not such a file is refused, and neither waited for nor written to.

BSFIND_LOCK_DIR names another folder: for containers that share a GPU but not `/tmp`.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bsfind.records import ReportWarning

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]


_POLL_S = 0.2
_FOR_EVERYONE = 0o666
_NOTE = re.compile(rb"(\d{1,30}\n)?")
"""All that a lock file holds: the PID of the process that has the lock."""


def lock_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the locks of this machine are: not in TMPDIR, which differs between users and jobs."""
    if chosen := environment.get("BSFIND_LOCK_DIR"):
        return Path(chosen)
    shared = Path("/tmp")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


class GpuLock:
    """The lock of one GPU; a context manager that releases it.

    Args:
        uuid: UUID of the GPU, or of the MIG slice.
        folder: where the locks are; made if it does not exist.
    """

    def __init__(self, uuid: str, folder: Path) -> None:
        self._path = folder / f"bsfind-{re.sub(r'[^0-9A-Za-z_-]', '_', uuid)[:80]}.lock"
        self._descriptor: int | None = None

    def __enter__(self) -> GpuLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self) -> bool:
        """Take the lock if nobody has it; return whether it is ours.

        Raises:
            OSError: there can be no lock: a folder that is not writable, something else in the place of
                the file, a file system or a system without `flock`.
        """
        if fcntl is None:
            raise OSError("this system has no file locks that bsfind could use")
        if self._descriptor is not None:
            return True
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._write(f"{os.getpid()}\n")
        return True

    def _open(self) -> int:
        """Open the file, or make it.

        An existing one is opened without O_CREAT, which Linux refuses on other users' files in `/tmp`
        (fs.protected_regular), and without following links, which anybody could have put there.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        while True:
            with contextlib.suppress(FileNotFoundError):
                self._check(self._path.lstat())  # before it is opened, which some devices act upon
                try:
                    descriptor = os.open(self._path, os.O_RDWR | flags)
                except PermissionError:
                    descriptor = os.open(self._path, os.O_RDONLY | flags)  # enough to lock it
                try:
                    self._note(descriptor)
                except OSError:
                    os.close(descriptor)
                    raise
                return descriptor
            with contextlib.suppress(FileExistsError):  # somebody was faster
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags)
                with contextlib.suppress(OSError):
                    os.fchmod(descriptor, _FOR_EVERYONE)  # whatever the umask: for all users
                return descriptor

    def _check(self, status: os.stat_result) -> None:
        """Make sure that a lock file is there.

        Raises:
            OSError: it is something else: a link, a pipe, another name of somebody's file.
        """
        if stat.S_ISLNK(status.st_mode):
            raise OSError(f"`{self._path}` is a symbolic link")
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"`{self._path}` is not a regular file")
        if status.st_nlink > 1:
            raise OSError(f"`{self._path}` is a hard link: another file would be written to")

    def _note(self, descriptor: int) -> bytes:
        """Return what a lock file holds.

        Raises:
            OSError: it is no lock file.
        """
        self._check(os.fstat(descriptor))
        text = os.pread(descriptor, 32, 0)
        if _NOTE.fullmatch(text) is None:
            raise OSError(f"`{self._path}` is a file of another program")
        return text

    def _write(self, text: str) -> None:
        """Leave a note to those who wait; the lock does not depend on it."""
        assert self._descriptor is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    @property
    def holder(self) -> int | None:
        """The PID of the process that has the lock; None: unknown."""
        try:
            descriptor = self._open()
            try:
                pid = int(self._note(descriptor))
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            return None
        try:
            os.kill(pid, 0)
        except PermissionError:  # another user's
            return pid
        except (OSError, OverflowError):
            return None
        return pid

    def release(self) -> None:
        """Release the lock; safe to call twice."""
        if self._descriptor is not None:
            self._write("")
            os.close(self._descriptor)
            self._descriptor = None


def hold(
    lock: GpuLock, check_time: Callable[[], None], on_wait: Callable[[str], None], *, alone: bool
) -> ReportWarning | None:
    """Take the lock of a GPU; return what the report has to say if that is not possible.

    Args:
        lock: the lock of the GPU.
        check_time: raises TimeLimitError when the time for the whole search is over.
        on_wait: called once, if there is something to wait for.
        alone: False: go ahead without the lock (`--no-lock`).

    Raises:
        TimeLimitError: the time for everything is over.
    """
    if not alone:
        return warning_without(lock)
    try:
        wait_for(lock, check_time, on_wait)
    except OSError as error:
        return ReportWarning(
            code="no_lock",
            message=f"nothing keeps another bsfind off this GPU while this one measures: {error}",
            hint="run one at a time, or name a folder for locks in BSFIND_LOCK_DIR",
        )
    return None


def wait_for(lock: GpuLock, check_time: Callable[[], None], on_wait: Callable[[str], None]) -> None:
    """Take a lock as soon as it is free (see `hold`).

    Raises:
        OSError: there can be no lock.
        TimeLimitError: the time for everything is over.
    """
    has_told = False
    while not lock.take():
        if not has_told:
            has_told = True
            on_wait(f"{_holder_of(lock)} is measuring on this GPU; waiting")
        check_time()
        time.sleep(_POLL_S)


def warning_without(lock: GpuLock) -> ReportWarning:
    """Return what a search without the lock has to say (`--no-lock`)."""
    with contextlib.suppress(OSError), lock:
        if not lock.take():
            return ReportWarning(
                code="no_lock",
                message=f"{_holder_of(lock)} is measuring on this GPU too: memory and timings may be "
                "wrong",
                hint="without `--no-lock` bsfind waits until it is done",
            )
    return ReportWarning(
        code="no_lock",
        message="nothing keeps another bsfind off this GPU while this one measures (`--no-lock`)",
    )


def _holder_of(lock: GpuLock) -> str:
    holder = lock.holder
    return "another bsfind" + (f" (PID {holder})" if holder is not None else "")

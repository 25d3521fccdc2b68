"""Reports as files: the ending names the format, and a file is replaced atomically.

What is not a regular file (a FIFO, a device, `/dev/stdout`) cannot be replaced: it is written to, and never
waited for longer than some seconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bsfind.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bsfind.results import Report
    from bsfind.search.compared_gpus import ComparedGpus

EXPORT_FORMATS = (".json", ".md", ".csv", ".svg", ".png")
DRAWN_FORMATS = (".svg", ".png")
"""Formats that take longer to write than a trial may take: not written after each trial."""

_READER_S = 2.0
"""How long to wait for somebody to open the other end of a FIFO."""
_LONGEST_S = 20.0
"""How long a reader may take to read a report."""


def _written(report: Report | ComparedGpus, suffix: str) -> str | bytes:
    from bsfind.report.compared_gpus import compared_to_csv, compared_to_markdown
    from bsfind.report.csv import to_csv  # `--help` goes without the writers
    from bsfind.report.json import to_json
    from bsfind.report.markup import to_markdown
    from bsfind.report.plot import to_png, to_svg
    from bsfind.search.compared_gpus import ComparedGpus

    if isinstance(report, ComparedGpus):
        of_compared = {".json": to_json, ".md": compared_to_markdown, ".csv": compared_to_csv}
        return of_compared[suffix](report)
    writers: dict[str, Callable[[Report], str | bytes]] = {
        ".json": to_json,
        ".md": to_markdown,
        ".csv": to_csv,
        ".svg": to_svg,
        ".png": to_png,
    }
    return writers[suffix](report)


def write_report(report: Report | ComparedGpus, path: Path) -> None:
    """Write a report; a reader sees the old file or the new one, never a part of one.

    Raises:
        UsageError: the file cannot be written (no permission, a full disk, a FIFO that nobody reads).
    """
    written = _written(report, path.suffix.lower())
    content = written.encode() if isinstance(written, str) else written
    with _told(path):
        if is_stream(path):
            _write_to_stream(path, content)
        else:
            _replace(path, content)


def append_text(path: Path, text: str) -> None:
    """Append to a file.

    Raises:
        UsageError: it cannot be written.
    """
    content = text.encode(errors="replace")
    with _told(path):
        if is_stream(path):
            _write_to_stream(path, content)
        else:
            with path.open("ab") as stream:
                stream.write(content)


def check_writable(path: Path) -> None:
    """Check before the search that its result can be written.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix.lower() in DRAWN_FORMATS:
        from bsfind.report.plot import check_can_draw

        check_can_draw()
    with _told(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            folder = Path(os.path.realpath(path)).parent
            if not folder.is_dir():
                raise OSError(f"there is no folder `{folder}`") from None
            if not os.access(folder, os.W_OK):
                raise OSError(f"no permission in `{folder}`") from None
            return
        if stat.S_ISDIR(mode) or stat.S_ISSOCK(mode):
            raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is a socket")
        if not os.access(path, os.W_OK):
            raise OSError("no permission")


def is_stream(path: Path) -> bool:
    """Tell whether a path leads to what cannot be replaced: it takes a report once, at the end."""
    try:
        return not stat.S_ISREG(path.stat().st_mode) or _descriptor(path) is not None
    except OSError:
        return False


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write `{path}`: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    try:
        target = Path(os.path.realpath(path, strict=True))
    except FileNotFoundError:
        target = Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".bsfind-")
    except PermissionError:  # the file may be writable all the same
        target.write_bytes(content)
        return
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a file that is mounted, as containers have them
            raise
        target.write_bytes(content)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_to_stream(path: Path, content: bytes) -> None:
    descriptor = _descriptor(path)
    if descriptor is not None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        _write(descriptor, content)
        return
    opened = _open(path)
    try:
        _write(opened, content)
    finally:
        os.close(opened)


def _descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that a path leads to: `/dev/stdout`, or the file that stdout is.

    To open it anew would give the file a second position, and to replace it would lose what is written to it.
    """
    place = path
    for _ in range(40):  # as many links as Linux follows
        place = Path(os.path.realpath(place.parent)) / place.name
        own = re.fullmatch(rf"/proc/{os.getpid()}(?:/task/\d+)?/fd/(\d+)", str(place))
        if own is not None:
            return int(own[1])
        if not place.is_symlink():
            break
        place = place.parent / place.readlink()
    for number in (1, 2):
        with contextlib.suppress(OSError):
            there = place.stat()
            if stat.S_ISREG(there.st_mode) and os.path.samestat(there, os.fstat(number)):
                return number
    return None


def _open(path: Path) -> int:
    """Open what is not a regular file; a FIFO as soon as it has a reader, but not later than soon."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    deadline = time.monotonic() + _READER_S
    while True:
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise OSError("nobody reads it") from None
        time.sleep(0.05)


def _write(descriptor: int, content: bytes) -> None:
    ready = select.poll()
    ready.register(descriptor, select.POLLOUT)
    rest = memoryview(content)
    deadline = time.monotonic() + _LONGEST_S
    while rest:
        if not ready.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            raise OSError(f"its reader has not read all of it within {_LONGEST_S:g} s")
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(descriptor, rest[: select.PIPE_BUF]) :]

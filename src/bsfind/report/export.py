"""Reports as files: the ending names the format, and a file is replaced atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bsfind.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bsfind.records import Report

EXPORT_FORMATS = (".json", ".md", ".csv", ".svg", ".png")
DRAWN_FORMATS = (".svg", ".png")
"""Formats that take longer to write than a trial may take: not written after each trial."""


def _written(report: Report, suffix: str) -> str | bytes:
    from bsfind.report.csv import to_csv  # `--help` goes without the writers
    from bsfind.report.json import to_json
    from bsfind.report.markup import to_markdown
    from bsfind.report.plot import to_png, to_svg

    writers: dict[str, Callable[[Report], str | bytes]] = {
        ".json": to_json,
        ".md": to_markdown,
        ".csv": to_csv,
        ".svg": to_svg,
        ".png": to_png,
    }
    return writers[suffix](report)


def write_report(report: Report, path: Path) -> None:
    """Write a report; a reader sees the old file or the new one, never a part of one.

    Raises:
        UsageError: the file cannot be written (no permission, a full disk).
    """
    written = _written(report, path.suffix.lower())
    try:
        _replace(path, written.encode() if isinstance(written, str) else written)
    except OSError as error:
        raise UsageError(f"cannot write `{path}`: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    if path.exists() and not path.is_file():
        # /dev/stdout and FIFOs cannot be replaced.
        path.write_bytes(content)
        return
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: Path) -> None:
    """Check before the search that its result can be written.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix.lower() in DRAWN_FORMATS:
        from bsfind.report.plot import check_can_draw

        check_can_draw()
    folder = path.resolve().parent
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"cannot write `{path}`: no permission")

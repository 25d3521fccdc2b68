"""What `bsfind explain` shows: screens of three widths, and the command through a real process."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import command_line
from rich.console import Console

from bsfind.errors import ExitCode
from bsfind.explain.explanation import explain
from bsfind.explain.screen import print_explanation

RANK = (
    "[rank{rank}]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {tried}. GPU {rank} has a "
    "total capacity of 23.56 GiB of which {free} is free. Including non-PyTorch memory, this process has "
    "22.50 GiB memory in use. Of the allocated memory {allocated} is allocated by PyTorch, and {cached} is "
    "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.\n"
)
ONE = RANK.format(
    rank=3, tried="1.20 GiB", free="15.88 MiB", allocated="20.95 GiB", cached="162.12 MiB"
)
LOG = ONE + RANK.format(
    rank=1, tried="2.00 GiB", free="812.50 MiB", allocated="13.25 GiB", cached="8.12 GiB"
)
ASSERT = "RuntimeError: CUDA error: device-side assert triggered\n"


def screen(text: str, width: int) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(
        file=out,
        width=width,
        height=25,  # of both, or a dumb terminal counts as one of 80 columns
        force_terminal=True,
        color_system=None,
        highlight=False,
        markup=False,
        legacy_windows=False,
    )
    print_explanation(explain(io.BytesIO(text.encode())), console)
    out.flush()
    shown = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return "".join(
        line.rstrip() + "\n" for line in re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_screens(width: int, golden: Callable[[str, str], None]) -> None:
    golden(f"explain_{width}.txt", screen(LOG, width))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_number_is_cut(width: int) -> None:
    lines = screen(LOG, width).splitlines()
    text = "\n".join(lines)
    assert "…" not in text
    for size in ("20.9 GiB", "162.1 MiB", "15.9 MiB", "1.2 GiB", "13.2 GiB", "812.5 MiB"):
        assert size in text, size
    # Only lines that are there to be copied may be longer than the screen.
    for line in lines:
        assert len(line) <= width or line.startswith("   "), line


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "text",
    [
        # torch 1.0-1.3; Windows; parts that round up; figures of different moments
        "CUDA out of memory. Tried to allocate 9.00 GiB (GPU 0; 4.00 GiB total capacity; 2.87 GiB already "
        "allocated; 25.10 MiB free; 31.20 MiB cached)",
        RANK.format(
            rank=0, tried="1.00 GiB", free="0 bytes", allocated="40.00 GiB", cached="1.00 GiB"
        ),
        RANK.format(
            rank=0, tried="1.00 GiB", free="1.06 GiB", allocated="17.81 GiB", cached="3.71 GiB"
        ),
        RANK.format(
            rank=0, tried="1.00 GiB", free="9.00 GiB", allocated="17.81 GiB", cached="3.71 GiB"
        ),
        "MPS backend out of memory (MPS allocated: 16.00 GB, other allocations: 3.31 GB, max allowed: 18.13 "
        "GB). Tried to allocate 256 bytes on shared pool.",
    ],
)
def test_no_breakdown_above_the_card(text: str, width: int) -> None:
    shown = screen(text, width)
    parts = re.findall(r"^[█▓▒╳╱·] .*?(\d+)%$", shown, re.MULTILINE)
    assert sum(map(int, parts)) <= 100
    if not parts:
        assert "no breakdown" in shown.replace("\n", " ")


def test_what_is_no_error_of_memory() -> None:
    text = screen(ASSERT, 80)
    assert text.startswith("No out-of-memory error\n")
    assert "CUDA_LAUNCH_BLOCKING=1" in text


# ------------------------------------------------------------------------------ a real process


def bsfind(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "bsfind", *arguments],
        check=False,
        capture_output=True,
        input=stdin,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


def test_a_file_and_standard_input_say_the_same(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(LOG, encoding="utf-8")
    runs = [
        bsfind("explain", str(log)),
        bsfind("explain", "-", stdin=LOG.encode()),
        bsfind("explain", stdin=LOG.encode()),
    ]
    assert {run.returncode for run in runs} == {ExitCode.OK}
    assert len({run.stdout for run in runs}) == 1
    assert b"CUDA out of memory" in runs[0].stdout
    assert {run.stderr for run in runs} == {b""}


def test_json() -> None:
    run = bsfind("explain", "--json", stdin=b"\xff\xfe\n" + LOG.encode())
    assert run.returncode == ExitCode.OK
    found = json.loads(run.stdout)
    assert found["kind"] == "cuda_oom"
    assert found["total_bytes"] == int(23.56 * (1 << 30))
    assert found["cause"] == "batch_too_large"
    assert [error["rank"] for error in found["errors"]] == [3, 1]
    assert found["errors"][1]["cause"] == "fragmentation"
    assert {"text", "command"} == set(found["advice"][0])


def test_json_without_an_error() -> None:
    run = bsfind("explain", "--json", stdin=ASSERT.encode())
    assert run.returncode == ExitCode.DOES_NOT_FIT
    found = json.loads(run.stdout)
    assert (found["kind"], found["cause"], found["errors"]) == ("not_oom", "not_memory", [])
    names = ("tried_bytes", "total_bytes", "allocated_bytes", "free_bytes", "reserved_bytes")
    assert [found[name] for name in names] == [None] * 5


def test_an_unreadable_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.log", tmp_path):
        outcome = command_line("explain", str(path))
        assert outcome.code == ExitCode.USAGE
        assert outcome.stdout == ""
        assert f"cannot read `{path}`" in outcome.stderr
        assert "hint:" in outcome.stderr


def test_output_that_was_closed(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(ONE, encoding="utf-8")
    command = f'"{sys.executable}" -m bsfind explain "{log}" >&-'
    run = subprocess.run(["sh", "-c", command], check=False, capture_output=True, timeout=120)
    assert (run.returncode, run.stderr) == (ExitCode.OK, b"")


def test_a_terminal_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    outcome = command_line("explain")
    assert outcome.code == ExitCode.USAGE
    assert "`bsfind explain FILE`" in outcome.stderr

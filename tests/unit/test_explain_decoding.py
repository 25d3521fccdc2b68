"""Logs that are no UTF-8 text: other encodings, compressed ones, those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import command_line

from bsfind.errors import ExitCode, UsageError
from bsfind.explain.explanation import explain
from bsfind.explain.texts import Kind

LOG = (
    "epoch 1: Größe 3, 学習 上\n"
    * 40
    + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of "
    "23.64 GiB of which 11.00 MiB is free. Of the allocated memory 22.90 GiB is allocated by PyTorch, and "
    "210.33 MiB is reserved by PyTorch but unallocated.\n"
)
BYTES = LOG.encode()
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": lambda data: bz2.compress(data, 1),  # in blocks of 100 kB
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
}


def check_found(data: bytes, *, line: int = 41) -> None:
    found = explain(io.BytesIO(data))
    assert found.kind is Kind.CUDA_OOM
    assert (found.figures.tried_bytes, found.figures.gpu_index) == (2 << 30, 1)
    assert found.errors[0].line == line
    assert found.lines == line


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_encodings(encoding: str, mark: str, end: str) -> None:
    check_found((mark + LOG).replace("\n", end).encode(encoding))


@pytest.mark.parametrize(
    ("first", "second"), [("utf-8", "utf-16-le"), ("utf-16-le", "utf-8"), ("latin-1", "utf-16")]
)
def test_a_log_that_two_programs_wrote_in_their_encodings(first: str, second: str) -> None:
    before = "".join(f"step {n} of many, and all is well\n" for n in range(3000))
    data = before.encode(first)
    assert explain(io.BytesIO(data + LOG.encode(second, errors="replace"))).kind is Kind.CUDA_OOM
    assert explain(io.BytesIO(LOG.encode(first, "replace") + before.encode(second))).errors


def test_utf_16_in_parts_of_any_size() -> None:
    check_found(("\ufeff" + "x" * 200_001 + "\n" + LOG).encode("utf-16-le"), line=42)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed(name: str) -> None:
    compress = COMPRESSIONS[name]
    check_found(compress(BYTES))
    check_found(compress(LOG.encode("utf-16")))
    check_found(gzip.compress(compress(BYTES)))
    assert explain(io.BytesIO(compress(b""))).errors == ()
    assert explain(io.BytesIO(compress(b"all is well\n"))).errors == ()


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_members_that_follow_one_another(name: str) -> None:
    compress = COMPRESSIONS[name]
    cut = BYTES.index(b"memory. Tried")
    check_found(compress(BYTES[:cut]) + compress(BYTES[cut:]) + b"\0" * 512)
    check_found(compress(BYTES[:cut]) + b"\0" * 512 + compress(b"") + compress(BYTES[cut:]))


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_what_is_left_of_damaged_data_is_read(name: str, damage: str) -> None:
    noise = bytes(random.Random(1).choices(range(32, 127), k=300_000))
    whole = COMPRESSIONS[name](BYTES + noise + b"\n")
    part = whole[:-9000] if damage == "cut" else whole[:-9000] + b"\xff" * 64 + whole[-8936:]
    found = explain(io.BytesIO(part))
    assert found.kind is Kind.CUDA_OOM
    assert "end early" in found.notes[0] or "damaged" in found.notes[0]
    assert found.to_json()["notes"] == list(found.notes)
    # Without an error, that is no answer.
    without = COMPRESSIONS[name](noise)
    for data in (without[:-9000], without[:20], whole[:20]):
        with pytest.raises(UsageError):
            explain(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "command"),
    [
        (b"PK\x03\x04\x14\x00", "unzip -p"),
        (b"\x04\x22\x4d\x18d@", "lz4 -dc"),
        (b"7z\xbc\xaf\x27\x1c\x00", "7z x -so"),
        (b"Rar!\x1a\x07\x00", "unrar p"),
        (b"\x1f\x9d\x90", "gzip -dc"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "zstd -dc"),
    ],
)
def test_what_cannot_be_read_is_refused(data: bytes, command: str) -> None:
    for some in (data, gzip.compress(data)):
        with pytest.raises(UsageError) as caught:
            explain(io.BytesIO(some))
        assert f"`{command}" in caught.value.hint


def test_what_is_no_text_is_refused_unless_it_has_an_error() -> None:
    noise = random.Random(1).randbytes(200_000)
    for data in (noise, gzip.compress(noise)):
        with pytest.raises(UsageError) as caught:
            explain(io.BytesIO(data))
        assert "It is no text" in caught.value.detail
    assert explain(io.BytesIO(noise + b"\n" + BYTES)).kind is Kind.CUDA_OOM
    other = ("Größe 3, 学習 上 \x1b[31mred\x1b[0m\r\n" * 1000).encode("gbk", errors="replace")
    assert explain(io.BytesIO(other)).errors == ()


@pytest.mark.skipif(
    sys.version_info < (3, 14) or importlib.util.find_spec("compression.zstd") is None,
    reason="Python reads zstd since 3.14",
)
def test_zstd() -> None:
    check_found(importlib.import_module("compression.zstd").compress(BYTES))


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz"])
def test_what_grows_a_thousandfold_takes_no_memory(name: str) -> None:
    bomb = COMPRESSIONS[name](bytes(30_000_000)) + COMPRESSIONS[name](BYTES)
    tracemalloc.start()
    try:
        assert explain(io.BytesIO(bomb)).kind is Kind.CUDA_OOM
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # the dictionary of xz has 8 MiB


def test_the_command(tmp_path: Path) -> None:
    log = tmp_path / "train.log.gz"
    log.write_bytes(gzip.compress(LOG.encode("utf-16")))
    found = command_line("explain", str(log))
    assert (found.code, "2.0 GiB asked for" in found.stdout) == (ExitCode.OK, True)
    archive = tmp_path / "logs.zip"
    archive.write_bytes(b"PK\x03\x04" + bytes(40))
    refused = command_line("explain", str(archive))
    assert (refused.code, refused.stdout) == (ExitCode.USAGE, "")
    assert "unzip -p" in refused.stderr
    with log.open("rb") as stream:
        run = subprocess.run(
            [sys.executable, "-m", "bsfind", "explain", "-"],
            stdin=stream,
            check=False,
            capture_output=True,
            timeout=120,
        )
    assert (run.returncode, run.stderr) == (ExitCode.OK, b"")


def test_parts_may_be_small() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(3)

    for data in (BYTES, LOG.encode("utf-16"), gzip.compress(BYTES), lzma.compress(BYTES)):
        assert explain(Dripping(data)).kind is Kind.CUDA_OOM

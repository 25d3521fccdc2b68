"""`bsfind explain` takes a time that grows like the log, whatever stands in it, and bounded memory."""

from __future__ import annotations

import io
import random
import re
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from bsfind.explain import explanation
from bsfind.explain.explanation import explain
from bsfind.explain.log import _FRAME, Log
from bsfind.explain.texts import Kind

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    "23.64 GiB of which 11.00 MiB is free. Of the allocated memory 22.90 GiB is allocated by PyTorch, and "
    "210.33 MiB is reserved by PyTorch but unallocated.\n"
)

# Parts of the patterns of `bsfind explain`, and what fills lines of logs.
FRAGMENTS = (
    *(
        "0123456789",
        "1,",
        "1.",
        "1, ",
        "101,2023,7,",
        "0f3a",
        "abcdefghij",
        "a_",
        " ",
        "\t",
        ".",
        ",",
    ),
    *(
        "_",
        "*",
        "* ",
        "| ",
        "# ",
        "> ",
        "│ ",
        "(",
        "[",
        "{",
        '"',
        "'",
        "\\",
        "\\n",
        "'\\n",
        '"\\\\n',
    ),
    *(
        "\r",
        "\0",
        "\x1b[",
        "\x1b]",
        "\\x1b[",
        "^[[",
        "^M",
        ": ",
        "a.py:1 ",
        "a.py:1   ",
        "\u00a0",
        "é",
    ),
    *(
        "GiB ",
        "MiB ",
        "1.00 GiB ",
        "1GiB",
        "1 kB",
        "already ",
        "free ",
        "1.00 GiB free ",
        "cached ",
    ),
    *(
        "cudaMalloc ",
        "cudaMalloc",
        "cudaMem",
        "cuMemcpy ",
        "unable to allocate ",
        "allocate ",
        "alloc",
    ),
    *(
        "RESOURCE_EXHAUSTED ",
        "ResourceExhaustedError ",
        "resource allocation failed ",
        "cublas ",
        "hip ",
    ),
    *(
        "CUDA out of memory ",
        "CUDA out of memory. ",
        "out of memory ",
        "if out of memory ",
        "OutOf",
    ),
    *(
        "OutOfMemory",
        "MemoryError",
        "x_MemoryError ",
        "memory ",
        "memory alloc",
        "insufficient memory ",
    ),
    *(
        "fail",
        "failed to allocate ",
        "tried to allocate ",
        "to reserve ",
        "malloc(",
        "malloc",
        "requested ",
    ),
    *(
        "Killed ",
        "Killed process 1 (",
        "killed for the ",
        "killed by the ",
        "oom ",
        "oom-kill ",
        "signal 9 ",
    ),
    *(
        "exit code ",
        "errno=12 ",
        "posix_memalign ",
        "NVML_SUCCESS == ",
        "THCudaCheck FAIL ",
        "Assertion ",
    ),
    *(
        "DataLoader worker (pid ",
        "Process 1 has ",
        "tensor with shape [1,",
        "free memory on device ",
    ),
    *(
        "available memory ",
        "allocating ",
        "step 1 ",
        "| 5/9 [",
        "[rank1]: ",
        "(TP1",
        "device ",
        "GPU 1 ",
    ),
    *(
        "in _",
        "torch/optim/",
        "load_model ",
        "allocated ",
        "bytes of 1",
        "Traceback (most recent call last)",
    ),
)


def seconds(data: bytes) -> float:
    start = time.process_time()
    assert explain(io.BytesIO(data)).kind is not Kind.NOT_OOM
    return time.process_time() - start


def lines_of(fragment: str, size: int, width: int) -> bytes:
    """Return a log of so many bytes, with an error before and after it."""
    chooser = random.Random(fragment)
    body = fragment * (size // len(fragment))
    lines = (body[i : i + width] for i in range(0, len(body), width))
    # No two are alike, with or without numbers.
    text = "".join(f"memory {chooser.getrandbits(60):x} {line}\n" for line in lines)
    return (OOM + text + OOM).encode()


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=[repr(fragment) for fragment in FRAGMENTS])
def test_time_grows_like_the_log(fragment: str) -> None:
    for width in (150, 4000):
        large = seconds(lines_of(fragment, 16 << 10, width))
        assert large < 0.3 or large < 8 * seconds(lines_of(fragment, 4 << 10, width))


@pytest.mark.parametrize(
    "fragment", ["9", "0f", "[1,2],", "[1, 2], ", " ", ".", ",", "ab", "1,1", "MiB "]
)
def test_a_line_of_a_megabyte_beside_an_error(fragment: str) -> None:
    line = fragment * (1_000_000 // len(fragment))
    assert seconds(f"{OOM}{line}\n".encode()) < 2
    assert seconds(f"{line}\n{OOM}".encode()) < 2
    assert seconds(f"{OOM}{fragment * (4000 // len(fragment))}\n".encode()) < 0.5


@pytest.mark.parametrize(
    "word",
    [
        *(
            "cudaMalloc",
            "unable to allocate",
            "RESOURCE_EXHAUSTED",
            "allocate",
            "CUDA out of memory",
        ),
        *(
            "CUDA out of memory.",
            "Killed process 1 (",
            "if out of memory",
            "tried to allocate 3 GiB",
        ),
    ],
)
def test_the_work_for_a_log_is_bounded(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "_MOST_WORK", 50_000)
    chooser = random.Random(word)
    noise = [f"{word} {chooser.getrandbits(60):x} {word}\n" for _ in range(6_000)]
    start = time.process_time()
    found = explain(io.BytesIO("".join([OOM, *noise]).encode()))
    assert time.process_time() - start < 4
    assert found.kind is Kind.CUDA_OOM
    assert found.errors[0].line == 1
    assert found.lines == 6_001
    if word in ("unable to allocate", "CUDA out of memory", "CUDA out of memory."):
        assert "not read" in found.notes[0]
    # An allocator's message is read after that, and before that what is likely an error.
    late = explain(io.BytesIO("".join([*noise, OOM]).encode()))
    assert 2 << 30 in {error.figures.tried_bytes for error in late.errors}
    if "out of memory" not in word:
        late = explain(io.BytesIO("".join([*noise, "fine\n" * 99, "MemoryError\n"]).encode()))
        assert Kind.CPU_OOM in {error.kind for error in late.errors}


def test_lines_that_differ_in_numbers_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "_MOST_WORK", 50_000)
    noise = "".join(
        f"[{n}/7330] eta: {n % 24}:35:37, memory: {n % 977}, loss: {n / 7}, unable to go on\n"
        for n in range(20_000)
    )
    middle = len(noise) // 2
    text = noise[:middle] + "\nOSError: [Errno 12] Cannot allocate memory\n" + noise[middle:]
    found = explain(io.BytesIO(text.encode()))
    assert (found.kind, found.notes) == (Kind.CPU_OOM, ())
    assert found.errors[0].line == text[: text.index("OSError")].count("\n") + 1


@pytest.mark.parametrize(
    ("harmless", "error"),
    [
        (
            "exited with code 1 after the last of all its steps",
            "exited with code 137 after the last",
        ),
        (
            "worker 3 got signal 15 while its memory was given back",
            "worker 3 got signal 9 while its memory",
        ),
        (
            "mmap of memory for the buffer: [Errno 11] try again",
            "mmap of memory for it: [Errno 12] try",
        ),
    ],
)
def test_a_number_that_makes_an_error_is_no_other_number(harmless: str, error: str) -> None:
    text = f"{harmless}\n" * 3 + "fine\n" * 80 + harmless.replace(harmless[:20], error[:20]) + "\n"
    assert explain(io.BytesIO(text.encode())).kind is Kind.NOT_OOM
    assert explain(io.BytesIO(f"{text}{error}\n".encode())).kind is not Kind.NOT_OOM


def test_bars_that_were_overwritten_hide_no_error() -> None:
    bars = "".join(f"\r {n}%|███ | {n}/100 [00:01<00:10, memory={n}G]" for n in range(2_000))
    for text in (bars + "\r" + OOM, bars + "\r" + OOM.strip() + bars, bars + "\n" + OOM):
        found = explain(io.BytesIO(text.encode()))
        assert (found.kind, found.figures.tried_bytes) == (Kind.CUDA_OOM, 2 << 30)


def test_a_long_line_is_one_line() -> None:
    found = explain(io.BytesIO(f"{'x' * 50_000}\n{OOM}".encode()))
    assert (found.lines, found.errors[0].line) == (2, 2)


def test_memory_does_not_grow_with_the_log() -> None:
    class Made(io.RawIOBase):
        """3 MB from 600 ranks, made as they are read."""

        def __init__(self) -> None:
            self.lines = self.made()

        def made(self) -> Iterator[bytes]:
            chooser = random.Random(0)
            for n in range(700):
                text = f"{chooser.getrandbits(40):x} {'memory of it ' * 300}"
                yield f"[rank{n % 600}]: {text}\n".encode()

        def read(self, size: int = -1, /) -> bytes:
            return next(self.lines, b"")

    tracemalloc.start()
    try:
        assert explain(Made()).lines == 700  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 << 20


def test_borders_are_taken_off_in_a_time_that_grows_like_the_line() -> None:
    line = "a" + " " * 200_000 + "b"
    start = time.process_time()
    assert _FRAME.sub("", line) == line
    assert time.process_time() - start < 1


def test_pieces_hold_every_line_that_matters() -> None:
    text = "".join(f"line {n} of memory\n" if n % 3 else "x\n" for n in range(500))
    held = [line for piece in Log([text]).pieces() for line in piece.lines]
    assert [line for line in held if "memory" in line] == re.findall("line.*", text)

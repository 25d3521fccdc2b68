"""Whatever a log holds, `bsfind explain` reads it in little time, and says nothing impossible of it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from bsfind.errors import BsfindError
from bsfind.explain.explanation import Explanation, explain
from bsfind.explain.screen import print_explanation
from bsfind.report.json import dumps
from tests.fuzz import examples

pytestmark = pytest.mark.fuzz

DATA = Path(__file__).parents[1] / "unit" / "data"
TEXTS = [
    json.loads(line)["text"]
    for name in ("oom_texts.jsonl", "oom_logs.jsonl")
    for line in (DATA / name).read_text(encoding="utf-8").splitlines()
]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7", "cp037", "shift_jis")
COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (
    gzip.compress,
    bz2.compress,
    lzma.compress,
    lambda data: gzip.compress(gzip.compress(data)),
)
TOKENS = (
    *(
        "9" * 3000,
        "1," * 1500,
        "A" * 3000,
        " " * 3000,
        "(" * 500,
        "\x1b[31m",
        "\x1b]0;owned\x07",
        "\x9b2J",
    ),
    *(
        "\u202e",
        "\ufeff",
        "\0",
        "\r",
        "\n",
        "\\n",
        "\\\\n",
        '"',
        "'",
        "[rank3]: ",
        "GiB",
        "-1",
        "1e999",
    ),
    *("NaN", "∞", "٣", "²", "0x7f", "18446744073709551616", "::error::", "[bold]", "│ ", "E   "),
    *(
        "Tried to allocate ",
        "Process 7 has ",
        " already allocated; ",
        "CUDA out of memory. ",
        "Killed",
    ),
)
_SECONDS = 2.0
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def check_numbers(value: Any, name: str = "") -> None:
    """Make sure that no number is negative, infinite or none at all."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            check_numbers(inner, name)
    elif isinstance(value, int | float):
        assert 0 <= value < 1 << 62, name


def read(data: bytes) -> Explanation | None:
    """Explain a log; None if bsfind refuses to read it."""
    start = time.process_time()
    try:
        return explain(io.BytesIO(data))
    except BsfindError:
        return None
    finally:
        assert time.process_time() - start < _SECONDS


def check(data: bytes) -> None:
    found = read(data)
    if found is None:
        return
    document = found.to_json()
    check_numbers(document)
    assert (document["kind"] == "not_oom") == (found.errors == ())
    written = dumps(document)
    assert _CONTROL.search(written.replace("\n", "")) is None
    json.loads(written, parse_constant=lambda name: pytest.fail(name))
    for width in (20, 100):
        out = io.StringIO()
        print_explanation(found, Console(file=out, width=width, highlight=False, markup=False))
        assert _CONTROL.search(out.getvalue()) is None
        assert out.getvalue().strip()


def mutated(text: str, chooser: random.Random) -> str:
    """Change a text at some places: insert, delete, double, swap and splice."""
    for _ in range(chooser.randrange(6)):
        start = chooser.randrange(len(text) + 1)
        end = min(len(text), start + chooser.randrange(200))
        other = chooser.choice(TEXTS)
        text = chooser.choice(
            (
                text[:start] + chooser.choice(TOKENS) + text[start:],
                text[:start] + text[end:],
                text[:end] + text[start:],
                text[:start] + other[chooser.randrange(len(other)) :],
                text[:start] + text[start:end][::-1] + text[end:],
                json.dumps({"msg": text}),
                repr(text),
                text.replace(" ", chooser.choice(("\n", "  ", "\u00a0", "_"))),
                re.sub(r"\d+", lambda _: chooser.choice(("0", "-1", "9" * 40, "1.5.2", ",")), text),
            )
        )
        text = text[:60_000]
    return text


@given(st.integers(0, 1 << 40))
@examples(1500)
def test_mutated_logs(seed: int) -> None:
    chooser = random.Random(seed)
    texts = [mutated(chooser.choice(TEXTS), chooser) for _ in range(chooser.randrange(1, 4))]
    data = bytearray("\n".join(texts).encode(chooser.choice(ENCODINGS), errors="replace"))
    if chooser.random() < 0.3:
        data = bytearray(chooser.choice(COMPRESSIONS)(bytes(data)))
    for _ in range(chooser.choice((0, 0, 1, 5, 50))):
        if data:
            data[chooser.randrange(len(data))] ^= 1 << chooser.randrange(8)
    if chooser.random() < 0.3:
        del data[chooser.randrange(len(data) + 1) :]
    check(bytes(data))


@given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=20), max_size=60).map("".join))
@examples(300)
def test_tokens(text: str) -> None:
    check(text.encode("utf-8", errors="replace"))


@given(st.binary(max_size=3000))
@examples(300)
@example(b"\x1f\x8b")
@example(b"\xff\xfe\0")
@example(b"BZh9")
@example(b"\xfd7zXZ\0")
def test_bytes(data: bytes) -> None:
    check(data)


@given(
    st.sampled_from(TEXTS),
    st.sampled_from(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig")),
)
@examples(200)
def test_an_encoding_changes_nothing(text: str, encoding: str) -> None:
    plain, other = read(text.encode()), read(text.encode(encoding))
    assert plain is not None
    assert other is not None
    assert plain.to_json() == other.to_json()
    for compress in COMPRESSIONS:
        packed = read(compress(text.encode(encoding)))
        assert packed is not None
        assert packed.to_json() == plain.to_json()

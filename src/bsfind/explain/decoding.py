"""The text of a log: decompressed and decoded part by part, in bounded memory.

A log is UTF-8, or UTF-16 and UTF-32 as Windows writes them, alone or compressed. What cannot be read is
refused: it must not pass for a log without an error.
"""

from __future__ import annotations

import bz2
import codecs
import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from bsfind.errors import UsageError

_PART = 64 << 10
_HEAD = 4 << 10
_MOST_LAYERS = 3
"""A file may have been compressed twice."""
_MOST_MEMORY = 128 << 20
"""What a decompressor may take: `xz -9` needs 65 MiB."""


def _gzip() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _lzma() -> Any:
    return lzma.LZMADecompressor(memlimit=_MOST_MEMORY)


def _zstd() -> Any:
    return importlib.import_module("compression.zstd").ZstdDecompressor()  # Python 3.14


def _unreadable() -> Any:
    raise ImportError


# The first bytes of a file, what it is, its decompressor, and the command that writes it as text.
_FORMATS: tuple[tuple[bytes, str, Callable[[], Any], str], ...] = (
    (rb"\x1f\x8b", "gzip", _gzip, "gzip -dc"),
    (rb"BZh[1-9](?:1|\x17|\Z)", "bzip2", bz2.BZ2Decompressor, "bzip2 -dc"),
    (rb"\xfd7zXZ|\x5d\0\0..\xff{8}", "xz", _lzma, "xz -dc"),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd", _zstd, "zstd -dc"),
    (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", "zip", _unreadable, "unzip -p"),
    (rb"\x04\x22\x4d\x18", "lz4", _unreadable, "lz4 -dc"),
    (rb"\x1f\x9d", "compress", _unreadable, "gzip -dc"),
    (rb"LZIP\x01", "lzip", _unreadable, "lzip -dc"),
    (rb"7z\xbc\xaf\x27\x1c", "7z", _unreadable, "7z x -so"),
    (rb"Rar!\x1a\x07", "RAR", _unreadable, "unrar p -inul"),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
}
"""Which of every four bytes are zero in a text that is mostly ASCII."""
_CONTROLS = bytes({*range(1, 32), 127} - {*b"\t\n\v\f\r\b\x1b"})
_MOST_CONTROLS = 0.03
"""Share of control characters above which bytes are no text: of random ones, a tenth are."""
_FEW_CONTROLS = 100
_BYTES_OF_TEXT = re.compile(rb"[\t\r\n -~]{64}")


def text_parts(stream: BinaryIO, incomplete: list[str]) -> Iterator[str]:
    """Yield the text of a log; what is not of its encoding is replaced.

    Args:
        stream: the log; read to its end, once.
        incomplete: gets a sentence if compressed data end early or are damaged, or if it is no text.

    Raises:
        UsageError: it is compressed in a way that cannot be read.
        OSError: it cannot be read at all.
    """
    head, parts = _begin(_read(stream))
    for _ in range(_MOST_LAYERS):
        found = next((known for known in _FORMATS if re.match(known[0], head, re.DOTALL)), None)
        if found is None:
            return _decode(head, parts, incomplete)
        _, name, new, command = found
        try:
            new()
        except ImportError:
            raise _refusal(name, command) from None
        head, parts = _begin(_decompress(parts, name, new, incomplete))
        if not head and incomplete:
            raise _refusal(name, command, incomplete[0])
    raise UsageError("the log is compressed more than twice", hint="decompress it first")


def _refusal(name: str, command: str, detail: str = "") -> UsageError:
    hint = f"`{command} FILE | bsfind explain -`"
    return UsageError(f"cannot read a log in {name} format", detail=detail, hint=hint)


def _read(stream: BinaryIO) -> Iterator[bytes]:
    while part := stream.read(_PART):
        yield part


def _begin(parts: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return how the parts begin, and all of them."""
    head = b""
    while len(head) < _HEAD and (part := next(parts, None)) is not None:
        head += part
    return head, chain([head], parts)


def _decompress(
    parts: Iterator[bytes], name: str, new: Callable[[], Any], incomplete: list[str]
) -> Iterator[bytes]:
    """Yield what compressed data hold, in parts of bounded size; members may follow one another."""
    decompressor, is_begun, read = new(), False, 0
    for part in parts:
        while True:
            if not is_begun:
                part = part.lstrip(b"\0")  # padding between members
                if not part:
                    break
            try:
                text = decompressor.decompress(part, _PART)
            except Exception as error:  # each of the modules has its own
                incomplete.append(f"The {name} data are damaged after {read:,} bytes: {error}.")
                return
            read += len(text)
            yield text
            is_begun = not decompressor.eof
            if not is_begun:
                part, decompressor = decompressor.unused_data, new()
                continue
            part = getattr(decompressor, "unconsumed_tail", b"")
            if len(text) < _PART and not part:
                break
    if is_begun:
        incomplete.append(f"The {name} data end early, after {read:,} bytes.")


def _encoding(head: bytes) -> str:
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    every_fourth = [head[start:_HEAD:4] for start in range(4)]
    zeros = tuple(some.count(0) > 0.4 * len(some) for some in every_fourth)
    return _ZEROS.get(zeros, "utf-8")


def _decode(head: bytes, parts: Iterator[bytes], incomplete: list[str]) -> Iterator[str]:
    encoding = _encoding(head)
    read = controls = 0
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    for part in parts:
        if encoding != "utf-8" and _BYTES_OF_TEXT.search(part):
            # PowerShell's `>>` adds UTF-16 to whatever is there, and other programs add UTF-8 to that.
            encoding = "utf-8"
            decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        if encoding == "utf-8":
            read += len(part)
            controls += len(part) - len(part.translate(None, _CONTROLS))
        yield decoder.decode(part).replace("\0", "").replace("\ufeff", "")
    yield decoder.decode(b"", final=True)
    if controls > max(_FEW_CONTROLS, _MOST_CONTROLS * read):
        incomplete.append("It is no text: it has many control characters.")

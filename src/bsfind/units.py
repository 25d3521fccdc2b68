"""Parse and format sizes, fractions, durations and counts.

`GiB` is binary, `GB` decimal, a bare integer is bytes. `24G` is refused because it is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_NAMED_SIZES = 4
"""How many batch sizes a sentence names; of more, the first."""

_UNITS = {
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_NUMBER_AND_UNIT = re.compile(
    r"\s*([0-9]{1,999}(?:\.[0-9]{1,999})?|\.[0-9]{1,999})\s*([A-Za-z%]*)\s*"
)
_DURATION_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0}


def brief(value: object) -> str:
    """Return a value as an error message quotes it: the beginning of what is long."""
    try:
        text = str(value)
    except Exception:  # of the value's own code; Python writes no integer of more than 4300 digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 100 else f"{text[:50]}…{text[-30:]}"


def _number_and_unit(text: str, what: str, example: str) -> tuple[str, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise ValueError(f"`{brief(text)}` is not {what}, write it like {example}")
    return match[1], match[2]


def parse_size(text: str) -> int:
    """Parse a size in bytes: `24GiB`, `24 GB`, `512MiB`, `1073741824`.

    Raises:
        ValueError: not a size, or an ambiguous one (`24G`); the message says what to write.
    """
    number, unit = _number_and_unit(text, "a size", "`24GiB`, `512MiB` or `1073741824` (bytes)")
    if unit == "":
        if not number.isdigit():
            raise ValueError(f"`{text}` has no unit, write `{number}GiB` or `{number}MiB`")
        return int(number)
    factor = _UNITS.get(unit.lower())
    if factor is not None:
        whole, _, decimals = number.partition(".")
        return int(int(whole + decimals) * factor // 10 ** len(decimals))
    if unit.lower() in ("k", "m", "g", "t"):
        prefix = unit.upper()
        raise ValueError(
            f"`{text}` is ambiguous, write `{number}{prefix}iB` (binary) or `{number}{prefix}B` (decimal)"
        )
    raise ValueError(f"`{text}` has an unknown unit `{unit}`, write `MiB`, `GiB`, `MB` or `GB`")


def parse_fraction(text: str) -> float:
    """Parse a fraction of one: `0.5%` → 0.005, `0.005` → 0.005, `0` → 0.

    Raises:
        ValueError: not a fraction, or outside 0 … 1.
    """
    number, unit = _number_and_unit(text, "a fraction", "`0.5%` or `0.005`")
    if unit not in ("", "%"):
        raise ValueError(f"`{text}` is not a fraction, write it like `0.5%` or `0.005`")
    value = float(number) / (100 if unit else 1)
    if value >= 1:
        hint = f", write `{number}%`" if not unit and value < 100 else ""
        raise ValueError(f"`{brief(text)}` must be less than 100%{hint}")
    return value


def parse_duration(text: str) -> float:
    """Parse a duration in seconds: `90`, `90s`, `10m`, `1.5h`.

    Raises:
        ValueError: not a duration.
    """
    number, unit = _number_and_unit(text, "a duration", "`90s`, `10m` or `1.5h`")
    factor = _DURATION_UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(f"`{text}` has an unknown unit `{unit}`, write `s`, `m` or `h`")
    return float(number) * factor


@dataclass(frozen=True, kw_only=True)
class Headroom:
    """Memory to keep free: a fraction of the capacity, or a number of bytes."""

    fraction: float | None = None
    bytes: int | None = None

    def of(self, capacity_bytes: int) -> int:
        """Return the headroom in bytes on a device of `capacity_bytes`."""
        if self.bytes is not None:
            return self.bytes
        return int(capacity_bytes * (self.fraction or 0.0))

    def leaves(self, capacity_bytes: int) -> int:
        """Return `capacity_bytes` minus the headroom, at least 0."""
        return max(0, capacity_bytes - self.of(capacity_bytes))

    def __str__(self) -> str:
        if self.bytes is not None:
            # `parse_headroom` refuses a few bytes without a unit, which most likely mean a percentage.
            return f"{self.bytes}B" if 0 < self.bytes < MIB else str(self.bytes)
        return f"{plain_number((self.fraction or 0.0) * 100)}%"


def parse_headroom(text: str) -> Headroom:
    """Parse a headroom: `5%` of the capacity, or a size (`1GiB`, `500MiB`, bytes).

    Raises:
        ValueError: it is neither.
    """
    if text.strip().endswith("%"):
        return Headroom(fraction=parse_fraction(text))
    if re.fullmatch(r"\s*0?\.[0-9]+\s*", text):
        raise ValueError(
            f"`{text}` is neither a fraction nor a size, write `{float(text) * 100:g}%`"
        )
    size = parse_size(text)
    if 0 < size < MIB and text.strip().isdigit():
        raise ValueError(
            f"`{text}` is {size} bytes, write `{text.strip()}%` or `{text.strip()}MiB`"
        )
    return Headroom(bytes=size)


def exact_size(nbytes: int) -> str:
    """Format a size so that `parse_size` reads the same number: `8GiB`, `1536MiB`, or bytes."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB")):
        if nbytes and nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


def plain_number(value: float) -> str:
    """Format a number without an exponent, so that the parsers read it: `0.5`, `1209600`."""
    return f"{value:.10f}".rstrip("0").rstrip(".")


def format_bytes(size: int | None) -> str:
    """Format bytes in binary units: `21.6 GiB`, `512.0 MiB`, `0 B`; `-` for unknown."""
    if size is None:
        return "-"
    sign, size = ("-", -size) if size < 0 else ("", size)
    for factor, unit in ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        # 1023.5 MiB would print as 1024 MiB: switch to the next unit before that.
        if size >= factor * (1023.5 / 1024):
            value = size / factor
            return f"{sign}{value:.0f} {unit}" if value >= 999.95 else f"{sign}{value:.1f} {unit}"
    return f"{sign}{size} B"


def format_count(value: float | None) -> str:
    """Format a number with thousands separators, three digits at least: `1,020`, `41.2`, `3.07`."""
    if value is None:
        return "-"
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def format_parameters(count: int) -> str:
    """Format a number of parameters: `25.6 M`, `7.2 B`, `812`."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= factor * 0.9995:
            return f"{count / factor:.1f} {unit}"
    return str(count)


def format_duration(seconds: float) -> str:
    """Format a duration: `0.4 s`, `8 s`, `2 min 5 s`, `1 h 3 min`."""
    if seconds < 9.95 and seconds != int(seconds):
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def format_batch_sizes(sizes: Sequence[int]) -> str:
    """Write batch sizes as a sentence has them: `1,234`, `3 and 2`, `9, 8, 7, 6 and 5 others`."""
    texts = [f"{size:,}" for size in sizes]
    if len(texts) > _NAMED_SIZES:
        texts[_NAMED_SIZES:] = [f"{len(texts) - _NAMED_SIZES} others"]
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last

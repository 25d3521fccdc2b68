"""Where the axes of a picture have their ticks, and what stands at them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from bsfind.units import GIB, KIB, MIB

_UNITS = ((GIB << 10, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B"))


@dataclass(frozen=True)
class Tick:
    """A mark of an axis.

    Attributes:
        value: where it is, in samples or bytes.
        label: what is written there.
    """

    value: int
    label: str


def batch_size_ticks(high: int, most: int) -> tuple[Tick, ...]:
    """Return the ticks of an axis of batch sizes from 0 to `high`.

    Args:
        high: where the axis ends, at least 1.
        most: how many ticks there is room for, at least 3.
    """
    step = _step(Fraction(high), most, smallest=Fraction(1))
    return tuple(Tick(value, f"{value:,}") for value in range(0, high + 1, int(step)))


def memory_ticks(high: int, most: int) -> tuple[Tick, ...]:
    """Return the ticks of an axis of memory from 0 to `high` bytes, all in the same unit.

    Args:
        high: where the axis ends, at least 1.
        most: how many ticks there is room for, at least 3.
    """
    unit, name = next((unit, name) for unit, name in _UNITS if high >= unit)
    # Tenths of a unit are readable (0.5 GiB), hundredths are what the next smaller unit is for.
    step = _step(Fraction(high, unit), most, smallest=Fraction(1) if unit == 1 else Fraction(1, 10))
    decimals = 1 if step < 1 else 0
    count = int(Fraction(high, unit) / step)
    return tuple(
        Tick(round(i * step * unit), f"{float(i * step):,.{decimals}f} {name}" if i else "0")
        for i in range(count + 1)
    )


def _step(high: Fraction, most: int, smallest: Fraction) -> Fraction:
    """Return the smallest of 1, 2, 5, 10, 20 … (times `smallest`) with at most `most` ticks."""
    return next(step for step in _steps(smallest) if int(high / step) + 1 <= max(3, most))


def _steps(smallest: Fraction) -> Iterator[Fraction]:
    scale = smallest
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10

"""The picture of memory at the terminal, `--plot`: peak reserved against batch size."""

from __future__ import annotations

from itertools import cycle, pairwise
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from bsfind.report.plot import Picture, Series, batch_size_ticks, memory_ticks, picture_of
from bsfind.report.width import is_utf8
from bsfind.results import Report
from bsfind.trial import Trial

_NARROWEST = 32
"""Columns below which a plot shows less than the table."""

_LOWEST, _HIGHEST = 10, 20
_STYLES = ("blue", "dark_orange", "green", "magenta", "yellow", "cyan", "red", "white")
_BLANK = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a cell by (column, row) in Unicode's block "Braille Patterns", which begins at U+2800."""


class _Glyphs(NamedTuple):
    """Characters: a mark for each series, the same for its recommended size, and so on."""

    points: str
    recommended: str
    failed: str
    limits: str
    corner: str
    across: str
    up: str
    dots: tuple[tuple[int, ...], ...]


_UNICODE = _Glyphs("●■▲◆", "○□△◇", "×", "─╌", "└", "─", "│", _DOTS)
_ASCII = _Glyphs("o#^v", "OOOO", "x", "-~", "+", "-", "|", ())


def print_plot(report: Report, console: Console) -> None:
    """Print the plot in the width of the console; nothing where no trial has ended."""
    picture = picture_of(report)
    if not picture.series:
        return
    if console.width < _NARROWEST:
        console.print(Text(f"The plot needs {_NARROWEST} columns."), soft_wrap=True)
        return
    glyphs = _UNICODE if is_utf8(console) else _ASCII
    console.print()
    console.print(Text(f"Peak reserved against {picture.searched}", style="dim"), soft_wrap=True)
    for line in _plot(picture, glyphs, console.width):
        console.print(line, no_wrap=True, soft_wrap=True)
    for line in _legend(picture, glyphs, console.width):
        console.print(line, soft_wrap=not console.is_terminal)


def _plot(picture: Picture, glyphs: _Glyphs, width: int) -> list[Text]:
    rows = min(_HIGHEST, max(_LOWEST, width // 5))
    memory = memory_ticks(picture.memory_high, rows // 2)
    indent = max(map(len, memory.values())) + 2
    columns = width - indent
    cells = [[(" ", "")] * columns for _ in range(rows)]

    def cell(across: float, up: float, scale: tuple[int, int] = (1, 1)) -> tuple[int, int]:
        """Return the column and row of a place, 0 to 1 from the lower left, in parts of a cell."""
        places = ((across, columns * scale[0]), (1 - up, rows * scale[1]))
        column, row = (min(most - 1, max(0, int(part * most))) for part, most in places)
        return column, row

    def place(trial: Trial) -> tuple[float, float]:
        peak = trial.peak_reserved_bytes if trial.status == "ok" else picture.ceiling_bytes
        return trial.size / picture.batch_size_high, (peak or 0) / picture.memory_high

    def mark(trial: Trial, character: str, style: str) -> None:
        column, row = cell(*place(trial))
        cells[row][column] = character, style

    def line(start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        scale = (2, 4) if glyphs.dots else (1, 1)
        (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
        steps = max(int(abs(dx) * columns * scale[0]), int(abs(dy) * rows * scale[1]), 1)
        for part in (i / steps for i in range(steps + 1)):
            column, row = cell(x + dx * part, y + dy * part, scale)
            (i, left), (j, top) = divmod(column, scale[0]), divmod(row, scale[1])
            dots = max(0, ord(cells[j][i][0]) - _BLANK)
            character = chr(_BLANK + (dots | glyphs.dots[left][top])) if glyphs.dots else "."
            cells[j][i] = character, style

    # From back to front: what is drawn last is seen.
    for nbytes, rule in reversed(list(zip(picture.limits.values(), glyphs.limits, strict=False))):
        _, row = cell(0, nbytes / picture.memory_high)
        cells[row] = [(rule, "dim")] * columns
    marked = _marked(picture, glyphs)
    for series, _, _, style in marked:
        for first, second in pairwise(series.ran):
            line(place(first), place(second), style)
    for series, point, _, style in marked:
        for trial in series.failed:
            mark(trial, glyphs.failed, style)
        for trial in series.ran:
            mark(trial, point, style)
    for series, _, ring, style in marked:
        if series.recommended is not None:
            mark(series.recommended, ring, f"bold {style}")

    labels = {cell(0, v / picture.memory_high)[1]: text for v, text in memory.items() if v}
    lines = [
        Text.assemble((f"{labels.get(row, ''):>{indent - 2}} {glyphs.up}", "dim"), *drawn)
        for row, drawn in enumerate(cells)
    ]
    lines.append(
        Text(f"{memory[0]:>{indent - 2}} {glyphs.corner}{glyphs.across * columns}", style="dim")
    )
    below = ""
    widest = len(f"{picture.batch_size_high:,}") + 2
    for size, label in batch_size_ticks(picture.batch_size_high, columns // widest).items():
        start = indent + cell(size / picture.batch_size_high, 0)[0] - len(label) // 2
        touches = below != "" and start < len(below) + 2
        if not touches and start + len(label) <= width:
            below = f"{below:<{start}}{label}"
    room = width - len(below)
    name = f"{picture.searched:>{room}}" if room > len(picture.searched) + 1 else ""
    return [*lines, Text(below + name, style="dim")]


def _legend(picture: Picture, glyphs: _Glyphs, width: int) -> list[Text]:
    """Return what the marks mean: a line for each series, then the rest, wrapped between entries."""
    marked = _marked(picture, glyphs)
    lines = [
        Text.assemble((point, style), f" {series.name}: {series.summary}")
        for series, point, _, style in marked
    ]
    rings = dict.fromkeys(ring for series, _, ring, _ in marked if series.recommended)
    entries = [f"{''.join(rings)} recommended"] if rings else []
    if picture.reasons:
        entries.append(f"{glyphs.failed} {picture.reasons}")
    entries += [
        f"{rule * 2} {label}" for label, rule in zip(picture.limits, glyphs.limits, strict=False)
    ]
    rows = [""]
    for entry in entries:
        if rows[-1] and len(rows[-1]) + 3 + len(entry) > width:
            rows.append("")
        rows[-1] += f"   {entry}" if rows[-1] else entry
    return [*lines, *(Text(row, style="dim") for row in rows if row)]


def _marked(picture: Picture, glyphs: _Glyphs) -> list[tuple[Series, str, str, str]]:
    """Return each series with the marks of its points and its recommended size, and its style."""
    marks = zip(cycle(glyphs.points), cycle(glyphs.recommended), cycle(_STYLES), strict=False)
    return [(series, *mark) for series, mark in zip(picture.series, marks, strict=False)]

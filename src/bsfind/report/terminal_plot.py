"""The picture of memory at the terminal: peak reserved against batch size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from bsfind.records import Report
from bsfind.report.canvas import Canvas
from bsfind.report.picture import Picture, picture_of
from bsfind.report.ticks import batch_size_ticks, memory_ticks

_HEADING = "Peak reserved against batch size"
_AXIS = "batch size"
_NARROWEST = 32
"""Below this many columns a plot tells less than the table."""

_LOWEST, _HIGHEST = 10, 20
_STYLES = ("blue", "dark_orange", "green", "magenta", "yellow", "cyan", "red", "white")


@dataclass(frozen=True, kw_only=True)
class _Glyphs:
    """Characters to draw with.

    Attributes:
        points: a mark for each series.
        recommended: the same, for the recommended size.
        miss: a trial that did not run.
        limits: the lines of capacity and budget.
        corner: where the axes meet.
        across: the lower axis.
        up: the left axis.
    """

    points: str
    recommended: str
    miss: str
    limits: str
    corner: str
    across: str
    up: str


_UNICODE = _Glyphs(
    points="●■▲◆", recommended="○□△◇", miss="×", limits="─╌", corner="└", across="─", up="│"
)
_ASCII = _Glyphs(
    points="o#^v", recommended="OOOO", miss="x", limits="-~", corner="+", across="-", up="|"
)


def print_plot(report: Report, console: Console) -> None:
    """Print the plot in the width of the console; nothing where no trial has ended."""
    picture = picture_of(report)
    if not picture.series:
        return
    if console.width < _NARROWEST:
        console.print(Text(f"The plot needs {_NARROWEST} columns."), soft_wrap=True)
        return
    is_utf8 = console.encoding.lower().replace("-", "") == "utf8"
    glyphs = _UNICODE if is_utf8 else _ASCII
    console.print()
    console.print(Text(_HEADING, style="dim"), soft_wrap=True)
    for line in _plot(picture, glyphs, console.width, braille=is_utf8):
        console.print(line, no_wrap=True, soft_wrap=True)
    for line in _legend(picture, glyphs, console.width):
        console.print(line, soft_wrap=not console.is_terminal)


def _plot(picture: Picture, glyphs: _Glyphs, width: int, *, braille: bool) -> list[Text]:
    height = min(_HIGHEST, max(_LOWEST, width // 5))
    ticks = memory_ticks(picture.memory_high, height // 2)
    labels = max(len(tick.label) for tick in ticks)
    canvas = Canvas(width=width - labels - 2, height=height, braille=braille)
    _draw(canvas, picture, glyphs)
    at = {canvas.row(tick.value / picture.memory_high): tick.label for tick in ticks[1:]}
    lines = [
        Text.assemble(
            (f"{at.get(row, ''):>{labels}} ", "dim"),
            (glyphs.up, "dim"),
            *cells,
        )
        for row, cells in enumerate(canvas.text())
    ]
    axis = f"{ticks[0].label:>{labels}} {glyphs.corner}{glyphs.across * canvas.width}"
    lines.append(Text(axis, style="dim"))
    return [*lines, _batch_sizes(picture, canvas, labels + 2)]


def _draw(canvas: Canvas, picture: Picture, glyphs: _Glyphs) -> None:
    def place(batch_size: int, nbytes: int) -> tuple[float, float]:
        return batch_size / picture.batch_size_high, nbytes / picture.memory_high

    # From back to front: what is drawn last is seen.
    for limit, character in reversed(list(zip(picture.limits, glyphs.limits, strict=False))):
        canvas.rule(limit.nbytes / picture.memory_high, character, "dim")
    for index, series in enumerate(picture.series):
        places = [place(p.batch_size, p.reserved_bytes) for p in series.points]
        for start, end in itertools.pairwise(places):
            canvas.line(start, end, _of(_STYLES, index))
    for index, series in enumerate(picture.series):
        for miss in series.misses:
            canvas.mark(
                *place(miss.batch_size, picture.ceiling_bytes), glyphs.miss, _of(_STYLES, index)
            )
        for point in series.points:
            canvas.mark(
                *place(point.batch_size, point.reserved_bytes),
                _of(glyphs.points, index),
                _of(_STYLES, index),
            )
    for index, series in enumerate(picture.series):
        if series.recommended is not None:
            canvas.mark(
                *place(series.recommended.batch_size, series.recommended.reserved_bytes),
                _of(glyphs.recommended, index),
                f"bold {_of(_STYLES, index)}",
            )


def _batch_sizes(picture: Picture, canvas: Canvas, indent: int) -> Text:
    """Return the line below the axis: a label under each tick, as long as there is room for it."""
    width = indent + canvas.width
    widest = len(f"{picture.batch_size_high:,}") + 2
    line = ""
    for tick in batch_size_ticks(picture.batch_size_high, canvas.width // widest):
        middle = indent + canvas.column(tick.value / picture.batch_size_high)
        start = middle - len(tick.label) // 2
        touches = line != "" and start < len(line) + 2
        if not touches and start + len(tick.label) <= width:
            line = f"{line:<{start}}{tick.label}"
    room = width - len(line)
    return Text(line + (f"{_AXIS:>{room}}" if room > len(_AXIS) + 1 else ""), style="dim")


def _legend(picture: Picture, glyphs: _Glyphs, width: int) -> list[Text]:
    """Return what the marks mean: a line for each series, then the rest, wrapped between entries."""
    lines = [
        Text.assemble(
            (_of(glyphs.points, index), _of(_STYLES, index)), f" {series.name}: {series.summary}"
        )
        for index, series in enumerate(picture.series)
    ]
    marks = "".join(
        _of(glyphs.recommended, index)
        for index, series in enumerate(picture.series)
        if series.recommended
    )
    entries = [f"{marks[:1] if len(set(marks)) == 1 else marks} recommended"] if marks else []
    if picture.reasons:
        entries.append(f"{glyphs.miss} {' / '.join(picture.reasons)}")
    entries += [
        f"{character * 2} {limit.text}"
        for limit, character in zip(picture.limits, glyphs.limits, strict=False)
    ]
    rows: list[str] = []
    for entry in entries:
        if rows and len(rows[-1]) + 3 + len(entry) <= width:
            rows[-1] += f"   {entry}"
        else:
            rows.append(entry)
    return [*lines, *(Text(row, style="dim") for row in rows)]


def _of(choices: Sequence[str], index: int) -> str:
    return choices[index % len(choices)]

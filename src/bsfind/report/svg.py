"""The picture of memory as SVG: one small file, without scripts, fonts or links.

It paints its own background and follows the reader's light or dark scheme. Widths of texts are
estimated on the wide side, since the reader's fonts are not known: nothing overlaps, nothing is cut.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from xml.etree import ElementTree

from bsfind.records import Report
from bsfind.report.picture import Picture, Series, picture_of
from bsfind.report.ticks import batch_size_ticks, memory_ticks

_WIDTH = 760
_LEFT, _RIGHT = 84, 620
_PLOT_HEIGHT = 300
_MARGIN = 20
_LINE = 18
_SMALL, _NORMAL, _LARGE = 11, 12, 15
_EM = 0.62
"""Width of a character as a part of the font's size: what wide sans-serif fonts come to."""

_MOST_TICKS = 7
_LEAST_DISTANCE = 14
"""Between the labels of two limits, from line to line, and of two ticks, from end to end."""

_LIGHT = ("#0b63c5", "#c2410c", "#15803d", "#8b2fc9", "#946200", "#0e7490", "#be185d", "#4b5563")
_DARK = ("#6cb0ff", "#ff9a5c", "#5fd38a", "#c9a0ff", "#f0c04f", "#5fd0e0", "#ff8fc0", "#b6bec9")

_STYLE = """
text {{ font-family: system-ui, sans-serif; fill: #1f2328; }}
.paper {{ fill: #ffffff; }}
.quiet {{ fill: #57606a; }}
.grid {{ stroke: #d8dee4; }}
.axis {{ stroke: #57606a; }}
.limit {{ stroke: #1f2328; }}
.mark {{ color: #57606a; }}
{light}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e6edf3; }}
.paper {{ fill: #0d1117; }}
.quiet {{ fill: #9aa4b0; }}
.grid {{ stroke: #2b323b; }}
.axis {{ stroke: #9aa4b0; }}
.limit {{ stroke: #e6edf3; }}
.mark {{ color: #9aa4b0; }}
{dark}
}}
"""


def to_svg(report: Report) -> str:
    """Return the picture as an SVG document."""
    return _Drawing(picture_of(report)).document()


def text_width(text: str, size: float) -> float:
    """Return what a text takes at most, in pixels, at a font size."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return (len(text) - wide) * _EM * size + wide * size


class _Drawing:
    """From top to bottom: heading, series, key, plot."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._root = ElementTree.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img"}
        )
        self._y = float(_MARGIN)
        self._top = 0.0

    def document(self) -> str:
        title = f"{self._picture.heading}: {self._picture.subject}"
        self._add("title").text = _printable(title)
        self._add("desc").text = _printable(self._picture.description)
        self._add("style").text = _style(len(self._picture.series))
        paper = self._add("rect", class_="paper", x=0, y=0, width=_WIDTH)
        self._heading()
        self._legend()
        self._key()
        self._top = self._y
        self._axes()
        self._limits()
        for index, series in enumerate(self._picture.series):
            self._series(series, index)
        height = self._top + _PLOT_HEIGHT + 48
        paper.set("height", _number(height))
        self._root.set("viewBox", f"0 0 {_WIDTH} {_number(height)}")
        self._root.set("width", str(_WIDTH))
        self._root.set("height", _number(height))
        ElementTree.indent(self._root, space="")
        return ElementTree.tostring(self._root, encoding="unicode") + "\n"

    # ------------------------------------------------------------------------------ above the plot

    def _heading(self) -> None:
        self._y += _LARGE
        self._text(self._picture.heading, _MARGIN, self._y, size=_LARGE, weight="bold")
        subject = _printable(self._picture.subject)
        widest = max(text_width(character, _NORMAL) for character in subject)
        for line in textwrap.wrap(subject, int((_WIDTH - 2 * _MARGIN) / widest)):
            self._y += _LINE
            self._text(line, _MARGIN, self._y, size=_NORMAL, class_="quiet")
        self._y += 8

    def _legend(self) -> None:
        for index, series in enumerate(self._picture.series):
            self._y += _LINE
            middle = self._y - 4
            group = self._add("g", class_=f"s{index % len(_LIGHT)}")
            self._line(_MARGIN, middle, _MARGIN + 26, middle, parent=group)
            self._mark(index, _MARGIN + 13, middle, parent=group)
            self._text(f"{series.name}: {series.summary}", _MARGIN + 36, self._y, size=_NORMAL)

    def _key(self) -> None:
        if not self._picture.series:
            self._y += _LINE
            self._text("no trial has ended", _MARGIN, self._y, size=_NORMAL)
        self._y += _LINE + 6
        x, middle = float(_MARGIN), self._y - 4
        group = self._add("g", class_="mark")
        entries = ["reserved", "allocated"]
        if any(series.recommended for series in self._picture.series):
            entries.append("recommended")
        if self._picture.reasons:
            entries.append(" / ".join(self._picture.reasons))
        for name in entries:
            if name == "reserved":
                self._line(x, middle, x + 26, middle, parent=group)
            elif name == "allocated":
                self._line(x, middle, x + 26, middle, parent=group, dashes="2 3")
            elif name == "recommended":
                self._ring(x + 13, middle, parent=group)
            else:
                self._cross(x + 13, middle, parent=group)
            self._text(name, x + 32, self._y, size=_SMALL, class_="quiet")
            x += 32 + text_width(name, _SMALL) + 18
        self._y += 16

    # --------------------------------------------------------------------------------- the plot

    def _axes(self) -> None:
        bottom = self._top + _PLOT_HEIGHT
        for tick in memory_ticks(self._picture.memory_high, _MOST_TICKS):
            y = self._y_of(tick.value)
            self._line(_LEFT, y, _RIGHT, y, class_="grid", width=1)
            self._text(tick.label, _LEFT - 8, y + 4, size=_SMALL, class_="quiet", anchor="end")
        high = self._picture.batch_size_high
        room = (_RIGHT - _LEFT) / (text_width(f"{high:,}", _SMALL) + _LEAST_DISTANCE)
        for tick in batch_size_ticks(high, min(_MOST_TICKS, int(room))):
            x = self._x_of(tick.value)
            self._line(x, bottom, x, bottom + 4, class_="axis", width=1)
            self._text(tick.label, x, bottom + 18, size=_SMALL, class_="quiet", anchor="middle")
        self._line(_LEFT, bottom, _RIGHT, bottom, class_="axis", width=1)
        middle = (_LEFT + _RIGHT) / 2
        self._text("batch size", middle, bottom + 36, size=_SMALL, class_="quiet", anchor="middle")

    def _limits(self) -> None:
        for limit, label in zip(self._picture.limits, self._label_heights(), strict=True):
            y = self._y_of(limit.nbytes)
            dashes = "" if limit is self._picture.limits[0] else "6 4"
            self._line(_LEFT, y, _RIGHT, y, class_="limit", width=1.2, dashes=dashes)
            self._text(limit.text, _RIGHT + 8, label + 4, size=_SMALL)

    def _label_heights(self) -> list[float]:
        """Return where the labels of the limits stand: beside their lines, and apart."""
        heights = [self._y_of(limit.nbytes) for limit in self._picture.limits]
        if len(heights) == 2:
            lacking = max(0.0, _LEAST_DISTANCE - (heights[1] - heights[0]))
            lower = min(heights[1] + lacking / 2, self._top + _PLOT_HEIGHT)
            heights = [min(heights[0] - lacking / 2, lower - _LEAST_DISTANCE), lower]
        return heights

    def _series(self, series: Series, index: int) -> None:
        group = self._add("g", class_=f"s{index % len(_LIGHT)}")
        reserved = [(self._x_of(p.batch_size), self._y_of(p.reserved_bytes)) for p in series.points]
        allocated = [
            (self._x_of(point.batch_size), self._y_of(point.allocated_bytes))
            for point in series.points
            if point.allocated_bytes is not None
        ]
        self._polyline(allocated, parent=group, dashes="2 3")
        self._polyline(reserved, parent=group)
        for x, y in allocated:
            self._add("circle", group, cx=x, cy=y, r=2, fill="currentColor")
        for miss in series.misses:
            x, y = self._x_of(miss.batch_size), self._y_of(self._picture.ceiling_bytes)
            self._tooltip(self._cross(x, y, parent=group), f"{series.name}, {miss.text}")
        for point, (x, y) in zip(series.points, reserved, strict=True):
            self._tooltip(self._mark(index, x, y, parent=group), f"{series.name}, {point.text}")
            if point is series.recommended:
                self._ring(x, y, parent=group)

    def _x_of(self, batch_size: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * batch_size / self._picture.batch_size_high

    def _y_of(self, nbytes: int) -> float:
        return self._top + _PLOT_HEIGHT * (1 - nbytes / self._picture.memory_high)

    # ---------------------------------------------------------------------------------- elements

    def _mark(
        self, index: int, x: float, y: float, parent: ElementTree.Element
    ) -> ElementTree.Element:
        """Draw what a series marks its points with: told apart without colours, too."""
        corners = (
            (),
            ((-3.5, -3.5), (3.5, -3.5), (3.5, 3.5), (-3.5, 3.5)),
            ((0, -5), (4.5, 3.5), (-4.5, 3.5)),
            ((0, -5), (5, 0), (0, 5), (-5, 0)),
        )[index % 4]
        if not corners:
            return self._add("circle", parent, cx=x, cy=y, r=4, fill="currentColor")
        path = "".join(
            f"{'L' if i else 'M'}{_number(x + dx)} {_number(y + dy)}"
            for i, (dx, dy) in enumerate(corners)
        )
        return self._add("path", parent, d=f"{path}Z", fill="currentColor")

    def _ring(self, x: float, y: float, parent: ElementTree.Element) -> None:
        self._add(
            "circle", parent, cx=x, cy=y, r=8, fill="none", stroke="currentColor", stroke_width=2
        )

    def _cross(self, x: float, y: float, parent: ElementTree.Element) -> ElementTree.Element:
        left, right, up, down = (_number(v) for v in (x - 4, x + 4, y - 4, y + 4))
        return self._add(
            "path",
            parent,
            d=f"M{left} {up}L{right} {down}M{left} {down}L{right} {up}",
            stroke="currentColor",
            stroke_width=2,
        )

    def _polyline(
        self, points: list[tuple[float, float]], parent: ElementTree.Element, dashes: str = ""
    ) -> None:
        if len(points) > 1:
            path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
            line = self._add("polyline", parent, points=path, fill="none", stroke_width=1.6)
            line.set("stroke", "currentColor")
            if dashes:
                line.set("stroke-dasharray", dashes)

    def _line(
        self,
        x1: float,
        y1: float,
        x2: float,
        y2: float,
        parent: ElementTree.Element | None = None,
        *,
        class_: str = "",
        width: float = 1.6,
        dashes: str = "",
    ) -> None:
        more: dict[str, str | float] = {"class_": class_} if class_ else {"stroke": "currentColor"}
        if dashes:
            more["stroke_dasharray"] = dashes
        self._add("line", parent, x1=x1, y1=y1, x2=x2, y2=y2, stroke_width=width, **more)

    def _text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        size: int,
        class_: str = "",
        anchor: str = "",
        weight: str = "",
    ) -> None:
        more = {"class_": class_, "text_anchor": anchor, "font_weight": weight}
        given: dict[str, str | float] = {name: value for name, value in more.items() if value}
        self._add("text", x=x, y=y, font_size=size, **given).text = _printable(text)

    def _tooltip(self, element: ElementTree.Element, text: str) -> None:
        self._add("title", element).text = _printable(text)

    def _add(
        self, tag: str, parent: ElementTree.Element | None = None, /, **attributes: str | float
    ) -> ElementTree.Element:
        """Append an element; `stroke_width` is `stroke-width`, `class_` is `class`."""
        element = ElementTree.SubElement(self._root if parent is None else parent, tag)
        for name, value in attributes.items():
            written = value if isinstance(value, str) else _number(value)
            element.set(name.rstrip("_").replace("_", "-"), written)
        return element


def _style(series: int) -> str:
    def colours(palette: tuple[str, ...]) -> str:
        used = palette[:series]
        return "\n".join(f".s{index} {{ color: {colour}; }}" for index, colour in enumerate(used))

    return _STYLE.format(light=colours(_LIGHT), dark=colours(_DARK))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _printable(text: str) -> str:
    """Replace what XML 1.0 cannot hold, not even escaped: control characters, lone surrogates."""
    return re.sub("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)

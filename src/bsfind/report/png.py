"""The picture of memory as PNG, drawn by matplotlib, which the extra `bsfind[plot]` brings."""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import TYPE_CHECKING

from bsfind.errors import UsageError
from bsfind.records import Report
from bsfind.report.picture import Picture, Series, picture_of
from bsfind.report.ticks import batch_size_ticks, memory_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_SIZE_INCHES = (8.0, 5.0)
_DOTS_PER_INCH = 150
_MOST_TICKS = 7
_SUBJECT_WIDTH = 95
_COLOURS = ("#0b63c5", "#c2410c", "#15803d", "#8b2fc9", "#946200", "#0e7490", "#be185d", "#4b5563")
_MARKERS = ("o", "s", "^", "D")
_LABEL_DISTANCE = 0.042
"""Between the labels of two limits, as a part of the plot's height."""


def check_can_draw() -> None:
    """Find out before the search whether there is a matplotlib that works.

    Raises:
        UsageError: it is not installed, or cannot be loaded.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a `.png` is drawn by matplotlib, which cannot be imported",
            detail="" if isinstance(error, ModuleNotFoundError) else str(error),
            hint="`pip install 'bsfind[plot]'`; `.svg` needs nothing",
        ) from None


def to_png(report: Report) -> bytes:
    """Return the picture as a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = picture_of(report)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what the user set for other plots
        figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, series in enumerate(picture.series):
            _draw(axes, series, picture, index)
        _draw_limits(axes, picture)
        _dress(axes, picture)
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters of a name that its font has not
            figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _draw(axes: Axes, series: Series, picture: Picture, index: int) -> None:
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    sizes = [point.batch_size for point in series.points]
    axes.plot(
        sizes,
        [point.reserved_bytes for point in series.points],
        color=colour,
        marker=marker,
        markersize=5,
        label=f"{series.name}: {series.summary}",
    )
    allocated = [p for p in series.points if p.allocated_bytes is not None]
    axes.plot(
        [point.batch_size for point in allocated],
        [point.allocated_bytes or 0 for point in allocated],
        color=colour,
        linestyle=":",
        marker=".",
        markersize=4,
    )
    if series.recommended is not None:
        axes.plot(
            [series.recommended.batch_size],
            [series.recommended.reserved_bytes],
            color=colour,
            linestyle="",
            marker="o",
            markersize=12,
            markerfacecolor="none",
            markeredgewidth=1.5,
        )
    axes.plot(
        [miss.batch_size for miss in series.misses],
        [picture.ceiling_bytes for _ in series.misses],
        color=colour,
        linestyle="",
        marker="x",
        markersize=7,
        markeredgewidth=1.5,
        zorder=3,
    )


def _draw_limits(axes: Axes, picture: Picture) -> None:
    least = _LABEL_DISTANCE * picture.memory_high
    heights = [float(limit.nbytes) for limit in picture.limits]
    if len(heights) == 2:
        lacking = max(0.0, least - (heights[0] - heights[1]))
        heights = [heights[0] + lacking / 2, heights[1] - lacking / 2]
    for limit, height in zip(picture.limits, heights, strict=True):
        style = "-" if limit is picture.limits[0] else "--"
        axes.axhline(limit.nbytes, color="#1f2328", linewidth=1, linestyle=style, zorder=1)
        axes.text(
            1.01, height, limit.text, fontsize=8, va="center", transform=axes.get_yaxis_transform()
        )


def _dress(axes: Axes, picture: Picture) -> None:
    axes.set_xlim(0, picture.batch_size_high)
    axes.set_ylim(0, picture.memory_high)
    ticks = batch_size_ticks(picture.batch_size_high, _MOST_TICKS)
    axes.set_xticks([tick.value for tick in ticks], [tick.label for tick in ticks])
    ticks = memory_ticks(picture.memory_high, _MOST_TICKS)
    axes.set_yticks([tick.value for tick in ticks], [tick.label for tick in ticks])
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#d8dee4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("batch size", fontsize=8)
    # A dollar sign in a path is no formula.
    subject = textwrap.fill(picture.subject, _SUBJECT_WIDTH)
    axes.set_title(
        f"{picture.heading}\n{subject}", fontsize=9, loc="left", parse_math=False, color="#1f2328"
    )
    key = ["solid: reserved", "dotted: allocated"]
    if any(series.recommended for series in picture.series):
        key.append("ring: recommended")
    if picture.reasons:
        key.append(f"cross: {' / '.join(picture.reasons)}")
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        handles=handles,
        title=" · ".join(key) if picture.series else "no trial has ended",
        title_fontsize=8,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(0, -0.12),
        borderaxespad=0,
        frameon=False,
        alignment="left",
    )

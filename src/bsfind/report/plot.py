"""The picture of peak memory against batch size: its data, and matplotlib drawing it as SVG or PNG.

A series for each row of the table. A trial that did not run has no peaks: it is marked on the line of
the capacity, which it would have crossed. matplotlib comes with the extra `bsfind[plot]`.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Any

from bsfind.errors import UsageError
from bsfind.report import wording
from bsfind.report.visible import visible
from bsfind.results import PrecisionResult, Report
from bsfind.trial import Trial
from bsfind.units import GIB, KIB, MIB, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHY_NOT = {"oom": "out of memory", "timeout": "took too long", "error": "failed"}
_BATCH_SIZE_MARGIN, _MEMORY_MARGIN = 1.05, 1.06
"""Length of an axis as a multiple of the largest value: marks at the edge are not cut."""

# ----------------------------------------------------------------------------- what is drawn


@dataclass(frozen=True, kw_only=True)
class Series:
    """The trials in one precision, with one variant of `--compare` at most.

    Attributes:
        name: the precision and the variant.
        summary: the result in a few words.
        ran: trials with a known peak reserved, by batch size.
        failed: trials that did not run, by batch size.
        recommended: the trial of the recommended batch size; None if nothing is recommended.
    """

    name: str
    summary: str
    ran: tuple[Trial, ...]
    failed: tuple[Trial, ...]
    recommended: Trial | None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that is drawn.

    Attributes:
        subject: what was searched, and on which device: the first line of the report.
        series: at least one trial each.
        limits: lines across the picture, bytes by label, from the highest down: the capacity, and the
            budget below it that keeps the headroom. Empty before a device was opened.
        searched: the name of the number that was searched.
        batch_size_high: end of the axis of batch sizes, which begins at 0.
        memory_high: end of the axis of memory in bytes, which begins at 0.
    """

    subject: str
    series: tuple[Series, ...]
    limits: dict[str, int]
    searched: str
    batch_size_high: int
    memory_high: int

    @property
    def heading(self) -> str:
        """What the picture shows."""
        return f"Peak memory against {self.searched}"

    @property
    def ceiling_bytes(self) -> int:
        """The height at which failed trials are drawn."""
        return max(self.limits.values(), default=self.memory_high)

    @property
    def reasons(self) -> str:
        """Why trials failed, each reason once: `out of memory / failed`."""
        found = (_WHY_NOT[trial.status] for series in self.series for trial in series.failed)
        return " / ".join(dict.fromkeys(found))


def picture_of(report: Report) -> Picture:
    """Return the picture of a report; of an unfinished one, what is known so far."""
    found = (_series(result, report) for result in wording.rows(report))
    series = tuple(s for s in found if s.ran or s.failed)
    limits = {}
    if report.device is not None:
        capacity, budget = report.device.capacity_bytes, report.budget_bytes
        limits[f"{format_bytes(capacity)} capacity"] = capacity
        if budget is not None and budget < capacity:
            limits[f"{format_bytes(budget)} budget"] = budget
    trials = [trial for s in series for trial in (*s.ran, *s.failed)]
    peaks = [peak or 0 for t in trials for peak in (t.peak_reserved_bytes, t.peak_allocated_bytes)]
    memory = max((*limits.values(), *peaks), default=1)
    sizes = [trial.size for trial in trials]
    return Picture(
        subject=visible(wording.subject(report)),
        series=series,
        limits=limits,
        searched=report.searched,
        batch_size_high=int(max(sizes, default=1) * _BATCH_SIZE_MARGIN) + 1,
        memory_high=int(memory * _MEMORY_MARGIN) + 1,
    )


def _series(result: PrecisionResult, report: Report) -> Series:
    # Of a size that ran twice the later trial counts: it is the confirmation.
    trials = sorted((*result.timings, *result.trials), key=lambda trial: trial.size)
    ran = {t.size: t for t in trials if t.status == "ok" and t.peak_reserved_bytes is not None}
    failed = {t.size: t for t in trials if t.status != "ok"}
    tried, most = report.search["batch_size"], result.max_size
    chosen = result.recommended_size
    if tried is not None:  # `check` recommends nothing
        summary, chosen = f"{tried:,} {'does not fit' if most is None else 'fits'}", None
    elif most is None:
        summary = "nothing fits" if result.status == "nothing_fits" else "no answer"
    else:
        summary = f"{most:,} at most{f', {chosen:,} recommended' if chosen is not None else ''}"
    return Series(
        name=wording.full_label(result),
        summary=summary,
        ran=tuple(ran.values()),
        failed=tuple(failed.values()),
        recommended=None if chosen is None else ran.get(chosen),
    )


# --------------------------------------------------------------------------------------- ticks

_UNITS = ((GIB << 10, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B"))

Ticks = dict[int, str]
"""Ticks of an axis: samples or bytes, and the label there."""


def batch_size_ticks(high: int, most: int) -> Ticks:
    """Return the ticks of an axis of batch sizes from 0 to `high`.

    Args:
        high: end of the axis, at least 1.
        most: how many ticks there is room for, at least 3.
    """
    step = _step(Fraction(high), most, smallest=Fraction(1))
    return {value: f"{value:,}" for value in range(0, high + 1, int(step))}


def memory_ticks(high: int, most: int) -> Ticks:
    """Return the ticks of an axis of memory from 0 to `high` bytes, all in the same unit.

    Args:
        high: end of the axis, at least 1.
        most: how many ticks there is room for, at least 3.
    """
    unit, name = next((unit, name) for unit, name in _UNITS if high >= unit)
    # Tenths of a unit are readable (0.5 GiB); hundredths would be a matter for the next smaller unit.
    step = _step(Fraction(high, unit), most, smallest=Fraction(1) if unit == 1 else Fraction(1, 10))
    values = [i * step for i in range(int(Fraction(high, unit) / step) + 1)]
    decimals = 1 if step < 1 else 0
    return {
        round(value * unit): f"{float(value):,.{decimals}f} {name}" if value else "0"
        for value in values
    }


def _step(high: Fraction, most: int, smallest: Fraction) -> Fraction:
    """Return the smallest of 1, 2, 5, 10, 20 … (times `smallest`) with at most `most` ticks."""
    scales = (smallest * Fraction(10) ** power for power in count())
    steps = (scale * factor for scale in scales for factor in (1, 2, 5))
    return next(step for step in steps if int(high / step) + 1 <= max(3, most))


# ---------------------------------------------------------------------------------- matplotlib

_INK, _GRID, _PAPER = "#1f2328", "#d8dee4", "#ffffff"
_SIZE_INCHES = (8.0, 5.0)
_DOTS_PER_INCH = 150
_MOST_TICKS = 7
_SUBJECT_WIDTH = 95
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "font.size": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "bsfind",  # the same report gives the same file
}
_MARKERS = ("o", "s", "^", "D")
_LABEL_DISTANCE = 0.042
"""Least distance between the labels of two limits, as a part of the plot's height."""

_COLOURS = ("#0b63c5", "#c2410c", "#15803d", "#8b2fc9", "#946200", "#0e7490", "#be185d", "#4b5563")
_DARK = ("#6cb0ff", "#ff9a5c", "#5fd38a", "#c9a0ff", "#f0c04f", "#5fd0e0", "#ff8fc0", "#b6bec9")
_SCHEMES = (
    *zip(_COLOURS, _DARK, strict=True),
    (_INK, "#e6edf3"),
    (_GRID, "#2b323b"),
    (_PAPER, "#0d1117"),
)
"""Each colour, and what an SVG shows instead where the reader prefers a dark scheme."""


def check_can_draw() -> None:
    """Check before the search that matplotlib works.

    Raises:
        UsageError: it is not installed, or cannot be loaded.
    """
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "pictures are drawn by matplotlib, which cannot be imported",
            detail="" if isinstance(error, ModuleNotFoundError) else str(error),
            hint="`pip install 'bsfind[plot]'`; `--plot` draws at the terminal without it",
        ) from None


def to_png(report: Report) -> bytes:
    """Return the picture as a PNG file."""
    return _drawn(report, "png")[0]


def to_svg(report: Report) -> str:
    """Return the picture as an SVG document.

    Texts stay texts, each trial has a tooltip, and the colours follow the reader's light or dark scheme.
    """
    content, tooltips = _drawn(report, "svg")
    document = content.decode()
    for name, text in tooltips.items():
        group = f'<g id="{name}">'
        document = document.replace(group, f"{group}<title>{text}</title>")
    rules = "".join(
        f'[style*="{use}: {light}"] {{{use}: {dark} !important}}\n'
        for light, dark in _SCHEMES
        for use in ("fill", "stroke")
    )
    scheme = f"\n@media (prefers-color-scheme: dark) {{\n{rules}}}</style>"
    _, start, rest = document.partition("<svg ")  # without the prolog, as HTML wants it
    return f'{start}role="img" {rest}'.replace("</style>", scheme, 1)


def _drawn(report: Report, file_format: str) -> tuple[bytes, dict[str, str]]:
    """Return the picture in one of matplotlib's formats, and the tooltips of trials by element id."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = picture_of(report)
    title = f"{picture.heading}: {picture.subject}"
    metadata = {"svg": {"Title": title, "Date": None}, "png": {"Software": None}}[file_format]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what the user set for other plots
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        tooltips: dict[str, str] = {}
        for index, series in enumerate(picture.series):
            tooltips |= _draw_series(axes, series, picture, index)
        _draw_limits(axes, picture)
        _draw_axes(axes, picture)
        stream = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # characters of a name that the font does not have
            figure.savefig(stream, format=file_format, metadata=metadata)
    return stream.getvalue(), tooltips


def _draw_series(axes: Axes, series: Series, picture: Picture, index: int) -> dict[str, str]:
    """Draw a series; returns the tooltips of its trials by element id."""
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]

    def line(trials: Iterable[Trial], peaks: Iterable[Any], style: str, **more: Any) -> None:
        axes.plot([trial.size for trial in trials], list(peaks), style, color=colour, **more)

    allocated = [trial for trial in series.ran if trial.peak_allocated_bytes is not None]
    line(allocated, (trial.peak_allocated_bytes for trial in allocated), ":.", ms=4)
    label = f"{series.name}: {series.summary}"
    reserved = [trial.peak_reserved_bytes for trial in series.ran]
    line(series.ran, reserved, f"-{marker}", ms=5, label=label)
    if series.recommended is not None:
        best = series.recommended
        line([best], [best.peak_reserved_bytes], "o", ms=12, mew=1.5, mfc="none")
    tooltips: dict[str, str] = {}
    for trial in (*series.ran, *series.failed):
        name = f"trial-{index}-{len(tooltips)}"
        text = f"{series.name}, {picture.searched} {trial.size:,}: "
        if trial in series.failed:
            line([trial], [picture.ceiling_bytes], "x", ms=7, mew=1.5, gid=name)
            tooltips[name] = text + _WHY_NOT[trial.status]
            continue
        line([trial], [trial.peak_reserved_bytes], marker, ms=5, gid=name)
        peaks = {"reserved": trial.peak_reserved_bytes, "allocated": trial.peak_allocated_bytes}
        known = (f"{format_bytes(peak)} {what}" for what, peak in peaks.items() if peak is not None)
        tooltips[name] = text + ", ".join(known)
    return tooltips


def _draw_limits(axes: Axes, picture: Picture) -> None:
    heights = [float(nbytes) for nbytes in picture.limits.values()]
    if len(heights) == 2:
        lacking = max(0.0, _LABEL_DISTANCE * picture.memory_high - (heights[0] - heights[1]))
        heights = [heights[0] + lacking / 2, heights[1] - lacking / 2]
    for (label, nbytes), height, style in zip(
        picture.limits.items(), heights, ("-", "--"), strict=False
    ):
        axes.axhline(nbytes, color=_INK, linewidth=1, linestyle=style, zorder=1)
        axes.text(1.01, height, label, va="center", transform=axes.get_yaxis_transform())


def _draw_axes(axes: Axes, picture: Picture) -> None:
    axes.set(
        xlim=(0, picture.batch_size_high), ylim=(0, picture.memory_high), xlabel=picture.searched
    )
    batch_sizes = batch_size_ticks(picture.batch_size_high, _MOST_TICKS)
    axes.set_xticks(list(batch_sizes), list(batch_sizes.values()))
    memory = memory_ticks(picture.memory_high, _MOST_TICKS)
    axes.set_yticks(list(memory), list(memory.values()))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    # A dollar sign in a path begins no formula.
    subject = textwrap.fill(picture.subject, _SUBJECT_WIDTH)
    axes.set_title(f"{picture.heading}\n{subject}", fontsize=9, loc="left", parse_math=False)
    key = ["solid: reserved", "dotted: allocated"]
    if any(series.recommended for series in picture.series):
        key.append("ring: recommended")
    if picture.reasons:
        key.append(f"cross: {picture.reasons}")
    axes.legend(
        handles=axes.get_legend_handles_labels()[0],
        title=" · ".join(key) if picture.series else "no trial has ended",
        loc="upper left",
        bbox_to_anchor=(0, -0.12),
        borderaxespad=0,
        frameon=False,
        alignment="left",
    )

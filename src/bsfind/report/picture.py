"""What a picture of memory shows, whoever draws it: points, limits, axes. Pure.

Peaks of every trial that ran against its batch size, a series for each row of the table. Trials
that did not run have no peaks: they stand on the line of the capacity, which they would have
crossed.
"""

from __future__ import annotations

from dataclasses import dataclass

from bsfind.records import PrecisionResult, Report, Trial
from bsfind.report import wording
from bsfind.units import format_bytes

_HEADING = "Peak memory against batch size"
_WHY_NOT = {"oom": "out of memory", "timeout": "took too long", "error": "failed"}

_BATCH_SIZE_MARGIN = 1.05
_MEMORY_MARGIN = 1.06
"""How far an axis reaches beyond what is drawn: marks at the edge are not cut."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial that ran."""

    batch_size: int
    allocated_bytes: int | None
    reserved_bytes: int

    @property
    def text(self) -> str:
        """What it says: for tooltips."""
        allocated = "" if self.allocated_bytes is None else format_bytes(self.allocated_bytes)
        return (
            f"batch size {self.batch_size:,}: {format_bytes(self.reserved_bytes)} reserved"
            f"{f', {allocated} allocated' if allocated else ''}"
        )


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A trial that did not run.

    Attributes:
        batch_size: that was tried.
        why_not: `out of memory`, `took too long`, `failed`.
    """

    batch_size: int
    why_not: str

    @property
    def text(self) -> str:
        """What it says: for tooltips."""
        return f"batch size {self.batch_size:,}: {self.why_not}"


@dataclass(frozen=True, kw_only=True)
class Series:
    """What was tried in one precision, with one remedy at most.

    Attributes:
        name: the precision, and the remedy.
        summary: what was found, in a few words.
        points: that ran, by batch size.
        misses: that did not, by batch size.
        recommended: the point to train at; None if there is none.
    """

    name: str
    summary: str
    points: tuple[Point, ...]
    misses: tuple[Miss, ...]
    recommended: Point | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A line across the picture: `capacity`, or the `budget` below it that keeps the headroom."""

    name: str
    nbytes: int

    @property
    def text(self) -> str:
        """What stands at the line."""
        return f"{format_bytes(self.nbytes)} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Everything that is drawn.

    Attributes:
        heading: what the picture is of.
        subject: what was searched, and where: the first line of the report.
        series: at least one trial each.
        limits: from the highest down; none before a device was opened.
        batch_size_high: where the axis of batch sizes ends; it begins at 0.
        memory_high: where the axis of memory ends, bytes; it begins at 0.
    """

    heading: str
    subject: str
    series: tuple[Series, ...]
    limits: tuple[Limit, ...]
    batch_size_high: int
    memory_high: int

    @property
    def ceiling_bytes(self) -> int:
        """Where misses are drawn."""
        return self.limits[0].nbytes if self.limits else self.memory_high

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why trials did not run, each once."""
        found = (miss.why_not for series in self.series for miss in series.misses)
        return tuple(dict.fromkeys(found))

    @property
    def description(self) -> str:
        """The picture in words, for those who do not see it."""
        parts = [self.subject, *(limit.text for limit in self.limits)]
        parts += [f"{series.name}: {series.summary}" for series in self.series]
        return ". ".join(parts) + "."


def picture_of(report: Report) -> Picture:
    """Return the picture of a report: of one that is not finished, what is known so far."""
    series = tuple(
        _series(result, report)
        for result in wording.rows(report)
        if _points(result) or _misses(result)
    )
    limits = _limits(report)
    sizes = [point.batch_size for s in series for point in s.points]
    sizes += [miss.batch_size for s in series for miss in s.misses]
    memory = [limit.nbytes for limit in limits]
    for point in (point for s in series for point in s.points):
        memory += [point.reserved_bytes, point.allocated_bytes or 0]
    return Picture(
        heading=_HEADING,
        subject=wording.subject(report),
        series=series,
        limits=limits,
        batch_size_high=int(max(sizes, default=1) * _BATCH_SIZE_MARGIN) + 1,
        memory_high=int(max(memory, default=1) * _MEMORY_MARGIN) + 1,
    )


def _series(result: PrecisionResult, report: Report) -> Series:
    points = _points(result)
    recommended = None
    if report.search["batch_size"] is None:  # `check` recommends nothing
        recommended = next(
            (point for point in points if point.batch_size == result.recommended_batch_size), None
        )
    return Series(
        name=wording.full_label(result),
        summary=_summary(result, report),
        points=points,
        misses=_misses(result),
        recommended=recommended,
    )


def _summary(result: PrecisionResult, report: Report) -> str:
    tried = report.search["batch_size"]
    if tried is not None:
        return f"{tried:,} {'does not fit' if result.max_batch_size is None else 'fits'}"
    if result.max_batch_size is None:
        return "nothing fits" if result.status == "nothing_fits" else "no answer"
    most = f"{result.max_batch_size:,} at most"
    if result.recommended_batch_size is None:
        return most
    return f"{most}, {result.recommended_batch_size:,} recommended"


def _points(result: PrecisionResult) -> tuple[Point, ...]:
    # Of a size that ran twice the later trial counts: it is the confirmation.
    points = {
        trial.batch_size: Point(
            batch_size=trial.batch_size,
            allocated_bytes=trial.peak_allocated_bytes,
            reserved_bytes=trial.peak_reserved_bytes,
        )
        for trial in _trials(result)
        if trial.status == "ok" and trial.peak_reserved_bytes is not None
    }
    return tuple(points[size] for size in sorted(points))


def _misses(result: PrecisionResult) -> tuple[Miss, ...]:
    misses = {
        trial.batch_size: Miss(batch_size=trial.batch_size, why_not=_WHY_NOT[trial.status])
        for trial in _trials(result)
        if trial.status != "ok"
    }
    return tuple(misses[size] for size in sorted(misses))


def _trials(result: PrecisionResult) -> tuple[Trial, ...]:
    return (*result.timings, *result.trials)


def _limits(report: Report) -> tuple[Limit, ...]:
    if report.device is None:
        return ()
    capacity = Limit(name="capacity", nbytes=report.device.capacity_bytes)
    budget = report.budget_bytes
    if budget is None or budget >= capacity.nbytes:
        return (capacity,)
    return (capacity, Limit(name="budget", nbytes=budget))

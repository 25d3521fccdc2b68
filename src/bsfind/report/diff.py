"""What differs between two reports, figure by figure, and the screen that shows it.

Worse is a batch size that fell, or a peak that rose, by more than the threshold; better is the
opposite. Peaks are judged where both reports have a trial of the same batch size, because else the
batch size explains them, and a peak reserved has to move by more than a segment of the allocator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from bsfind.report import wording
from bsfind.report.width import fits, print_sentence
from bsfind.results import PrecisionResult, Report
from bsfind.simulation.allocator.alloc_conf import AllocatorSettings
from bsfind.units import MIB, format_bytes, plain_number

SCHEMA_VERSION = "1.0"

Verdict = Literal["same", "better", "worse"]
_SEGMENT_BYTES = AllocatorSettings.large_segment_size_mb * MIB
"""Size of a segment of PyTorch's allocator: a peak reserved that moved by no more is rounding."""

_ANSWERED = ("ok", "nothing_fits")
"""Status of a result that has an answer."""

FigureName = Literal[
    "max_batch_size",
    "recommended_batch_size",
    "max_axis_size",
    "recommended_axis_size",
    "peak_allocated",
    "peak_reserved",
]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure in both reports.

    Attributes:
        figure: its name.
        old: samples or bytes in the old report; None: nothing fits.
        new: samples or bytes in the new report.
        old_batch_size: batch size of the trial that a peak is from; None for batch sizes.
        new_batch_size: the same in the new report.
        verdict: whether it became worse; None: not judged, because the batch sizes differ.
    """

    figure: FigureName
    old: int | None
    new: int | None
    old_batch_size: int | None = None
    new_batch_size: int | None = None
    verdict: Verdict | None

    @property
    def part(self) -> float | None:
        """Change as a part of the old figure; None where one of them is missing."""
        return self.new / self.old - 1 if self.old and self.new is not None else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The changes in one precision, at one of several lengths, with one variant of `--compare` at most."""

    name: str
    precision: str
    remedy: str | None
    seq_len: int | None
    changes: tuple[Change, ...]

    @property
    def verdict(self) -> Verdict:
        """Worse if any figure is, better if any is and none is worse."""
        return _overall(change.verdict for change in self.changes)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The comparison of two reports.

    Attributes:
        threshold: part of the old figure by which a new one may differ.
        rows: one for each row of the table that both reports have.
        warnings: other reasons than a change of the code that a figure may have changed for.
    """

    threshold: float
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def is_judged(self) -> bool:
        """Whether there is a figure that could have become worse."""
        return any(change.verdict for row in self.rows for change in row.changes)

    @property
    def verdict(self) -> Verdict:
        """Worse if any row is, better if any is and none is worse."""
        return _overall(row.verdict for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict,
            "threshold": self.threshold,
            "results": [
                {
                    "precision": row.precision,
                    "remedy": row.remedy,
                    "seq_len": row.seq_len,
                    "verdict": row.verdict,
                    "changes": [_json(change) for change in row.changes],
                }
                for row in self.rows
            ],
            "warnings": list(self.warnings),
        }


def _json(change: Change) -> dict[str, Any]:
    suffix = "_bytes" if change.figure.startswith("peak_") else ""
    return {
        "figure": f"{change.figure}{suffix}",
        "old": change.old,
        "new": change.new,
        "change": None if change.part is None else round(change.part, 6),
        "old_batch_size": change.old_batch_size,
        "new_batch_size": change.new_batch_size,
        "verdict": change.verdict,
    }


def compare(old: Report, new: Report, threshold: float) -> Difference:
    """Return what differs between two reports.

    Args:
        old: the report of `run` or `check` before the change.
        new: the report of the same command after it; of another command, peaks alone are compared.
        threshold: part of the old figure by which a new one may differ.
    """
    before = {_key(result): result for result in old.results if result.status in _ANSWERED}
    # A precision that had an answer and fails now does not fit any more.
    after = {_key(r): r for r in new.results if r.status in (*_ANSWERED, "error")}
    names: tuple[FigureName, ...] = ()
    if old.search["batch_size"] == new.search["batch_size"]:
        names = ("max_batch_size", "recommended_batch_size")
        if old.search["batch_size"] is not None:  # `check` recommends what it tried
            names = ("max_batch_size",)
    if old.axis is not None or new.axis is not None:
        names = ("max_axis_size", "recommended_axis_size") if _same_axis(old, new) else ()
    rows = []
    for key, result in before.items():
        if key in after and _same_axis(old, new):
            sizes = _batch_sizes(result, after[key], names, threshold)
            row = Row(
                name=wording.full_label(result),
                precision=result.precision,
                remedy=result.remedy,
                seq_len=result.seq_len,
                changes=(*sizes, *_peaks(result, after[key], threshold)),
            )
            rows.append(row)
    warnings = (*_context(old, new), *_unmatched(old, new))
    return Difference(threshold=threshold, rows=tuple(rows), warnings=warnings)


# ------------------------------------------------------------------------------------- figures


def _batch_sizes(
    old: PrecisionResult, new: PrecisionResult, names: tuple[FigureName, ...], threshold: float
) -> Iterator[Change]:
    for name in names:
        before, after = getattr(old, name), getattr(new, name)
        if before is not None or after is not None or name.startswith("max_"):
            verdict = _verdict(before or 0, after or 0, threshold, more_is_better=True)
            yield Change(figure=name, old=before, new=after, verdict=verdict)


def _peaks(old: PrecisionResult, new: PrecisionResult, threshold: float) -> Iterator[Change]:
    """Yield the changes of peaks at the largest size that ran in both, or at the recommended sizes."""
    # Of a size that ran twice the later trial counts: it is the confirmation.
    before = {t.size: t for t in (*old.timings, *old.trials) if t.status == "ok"}
    after = {t.size: t for t in (*new.timings, *new.trials) if t.status == "ok"}
    common = max(before.keys() & after.keys(), default=None)
    first = before.get(common or old.recommended_size or 0)
    second = after.get(common or new.recommended_size or 0)
    if first is None or second is None:
        return
    peaks: tuple[tuple[FigureName, int | None, int | None], ...] = (
        ("peak_allocated", first.peak_allocated_bytes, second.peak_allocated_bytes),
        ("peak_reserved", first.peak_reserved_bytes, second.peak_reserved_bytes),
    )
    for figure, was, now in peaks:
        if was is None or now is None:
            continue
        verdict: Verdict | None = None
        if first.size == second.size:
            is_rounding = figure == "peak_reserved" and abs(now - was) <= _SEGMENT_BYTES
            verdict = "same" if is_rounding else _verdict(was, now, threshold, more_is_better=False)
        yield Change(
            figure=figure,
            old=was,
            new=now,
            old_batch_size=first.size if first.axis_size is None else None,
            new_batch_size=second.size if second.axis_size is None else None,
            verdict=verdict,
        )


def _verdict(old: int, new: int, threshold: float, *, more_is_better: bool) -> Verdict:
    if abs(new - old) <= threshold * old:
        return "same"
    return "better" if (new > old) == more_is_better else "worse"


def _overall(verdicts: Iterator[Verdict | None]) -> Verdict:
    found = set(verdicts)
    if "worse" in found:
        return "worse"
    return "better" if "better" in found else "same"


# ------------------------------------------------------------------------------------ warnings


def _same_axis(old: Report, new: Report) -> bool:
    """Tell whether the same number was searched in both, of batches of one size."""
    return bool(old.workload.get("axis") == new.workload.get("axis"))


def _key(result: PrecisionResult) -> tuple[str, str | None, int | None]:
    return result.precision, result.remedy, result.seq_len


def _context(old: Report, new: Report) -> Iterator[str]:
    """Yield differences of what was asked, and where."""
    for name, report in (("old", old), ("new", new)):
        if report.status != "complete":
            yield f"the {name} report is {report.status}: {report.message or 'stopped early'}"
    if old.device is not None and new.device is not None:
        before, after = _device(old), _device(new)
        if before != after:
            yield f"different devices: {before}, {after}"
        elif old.device.capacity_bytes != new.device.capacity_bytes:
            sizes = (format_bytes(r.device.capacity_bytes) for r in (old, new) if r.device)
            yield f"different capacities: {', '.join(sizes)}"
    workload = _changed(old.workload, new.workload, ignored=("app_dir",))
    if workload:
        yield f"different workloads: {workload}"
    launch = _changed(old.launch or {}, new.launch or {}, ignored=("logs",))
    if launch:
        yield f"different commands: {launch}"
    search = _changed(old.search, new.search, ignored=_IRRELEVANT)
    if search:
        yield f"different searches: {search}"
    versions = old.environment.get("torch"), new.environment.get("torch")
    if versions[0] != versions[1]:
        yield f"different versions of torch: {versions[0]}, {versions[1]}"


# Settings that do not change which batch size fits, are compared elsewhere, or follow from the device.
_IRRELEVANT = (
    *("precisions", "seq_lens", "compare", "trial_timeout_s", "time_budget_s", "confirm_steps"),
    *("device", "gpu", "headroom_bytes"),
)


def _device(report: Report) -> str:
    device = report.device
    assert device is not None
    kind = "simulated " if report.simulated else ""
    return f"{kind}{device.name} ({format_bytes(device.total_bytes)})"


def _changed(old: dict[str, Any], new: dict[str, Any], ignored: tuple[str, ...]) -> str:
    """Return the names of settings that differ, with the values where they are short."""
    parts = []
    for name in sorted((old.keys() | new.keys()) - set(ignored)):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        short = not isinstance(before, (list, dict)) and not isinstance(after, (list, dict))
        what = name.removesuffix("_bytes").replace("_", " ")
        values = " → ".join("none" if value is None else str(value) for value in (before, after))
        parts.append(f"{what} {values}" if short else what)
    return ", ".join(parts)


def _unmatched(old: Report, new: Report) -> Iterator[str]:
    """Yield which rows are not in one of the reports, or have no answer there."""
    before = {_key(result): result for result in old.results}
    after = {_key(result): result for result in new.results}
    for key, result in {**before, **after}.items():
        for name, found in (("old", before.get(key)), ("new", after.get(key))):
            if found is None:
                yield f"{wording.full_label(result)} is not in the {name} report"
            elif found.status not in _ANSWERED:
                yield f"{wording.full_label(result)} has no answer in the {name} report: {found.status}"


# ---------------------------------------------------------------------------------- the screen

_STYLES = {"worse": "red", "better": "green", "same": "", None: "dim"}
_NAMES = {
    "max_batch_size": "max batch",
    "recommended_batch_size": "recommended",
    "max_axis_size": "max size",
    "recommended_axis_size": "recommended",
    "peak_allocated": "peak allocated",
    "peak_reserved": "peak reserved",
}


def print_difference(difference: Difference, console: Console) -> None:
    """Print the difference in the width of the console."""
    layouts = [_table(difference, with_verdict=True), _table(difference, with_verdict=False)]
    table = next((table for table in layouts if fits(table, console)), None)
    if table is not None:
        console.print(table)
    else:
        for row in difference.rows:
            for change in row.changes:
                old, new, by = _cells(change)
                line = f"{row.name} {_figure(change)}: {old} → {new} {by}"
                print_sentence(console, line.rstrip(), _STYLES[change.verdict])
    console.print()
    for text, style in _sentences(difference):
        print_sentence(console, text, style)


def _table(difference: Difference, *, with_verdict: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("precision", "figure", "old", "new", "change"):
        right = header not in ("precision", "figure")
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    if with_verdict:
        table.add_column("", no_wrap=True)
    for row in difference.rows:
        for i, change in enumerate(row.changes):
            cells = [row.name if i == 0 else "", _figure(change), *_cells(change)]
            verdict = "" if change.verdict in ("same", None) else str(change.verdict)
            table.add_row(
                *cells, *([verdict] if with_verdict else []), style=_STYLES[change.verdict]
            )
    return table


def _figure(change: Change) -> str:
    """Return the name of a figure: `peak reserved at 200`, `at 200 / 196` where the sizes differ."""
    name = _NAMES[change.figure]
    if change.old_batch_size is None:
        return name
    if change.old_batch_size == change.new_batch_size:
        return f"{name} at {change.old_batch_size:,}"
    return f"{name} at {change.old_batch_size:,} / {change.new_batch_size:,}"


def _cells(change: Change) -> tuple[str, str, str]:
    def written(value: int | None) -> str:
        if value is None:
            return "none"
        return format_bytes(value) if change.figure.startswith("peak_") else f"{value:,}"

    part = change.part
    by = "" if part is None else "=" if change.old == change.new else f"{part:+.1%}"
    return written(change.old), written(change.new), by


def _sentences(difference: Difference) -> list[tuple[str, str]]:
    """Return what became worse and what became better, with their styles."""
    told = []
    for verdict in ("worse", "better"):
        rows = [named for row in difference.rows if (named := _named(row, verdict))]
        if rows:
            told.append((f"{verdict.capitalize()}: {'; '.join(rows)}.", _STYLES[verdict]))
    limit = f"{plain_number(difference.threshold * 100)}%"
    return told or [(f"No figure changed by more than {limit}.", "")]


def _named(row: Row, verdict: str) -> str:
    """Return the figures of a row that have a verdict: `fp32 max batch -4.5%`; empty: none."""
    names = []
    for change in row.changes:
        if change.verdict == verdict:
            old, new, by = _cells(change)
            names.append(f"{_NAMES[change.figure]} {by or f'{old} → {new}'}")
    return f"{row.name} {', '.join(names)}" if names else ""

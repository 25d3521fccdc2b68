"""The trials as CSV: one row each, sizes in bytes, times in seconds, empty for unknown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from bsfind.report.visible import visible
from bsfind.results import Report

_OF_TRIAL = (
    *("batch_size", "status", "peak_allocated_bytes", "peak_reserved_bytes", "num_alloc_retries"),
    *("steady_alloc_retries", "steps", "step_time_s", "samples_per_s"),
)
_OF_RESULT = ("precision", "remedy", "seq_len", "weights_dtype")


def to_csv(report: Report) -> str:
    """Return one row per trial."""
    return written([header(report), *rows(report)])


def header(report: Report) -> list[str]:
    """Return the names of the columns."""
    axis = ["axis_size"] if report.axis is not None else []
    return [*_OF_RESULT, *axis, *_OF_TRIAL, "is_maximum", "is_recommended", "simulated"]


def rows(report: Report) -> Iterator[list[object]]:
    """Yield the cells of each trial."""
    of_trial = (*(("axis_size",) if report.axis is not None else ()), *_OF_TRIAL)
    for result in report.results:
        for trial in (*result.trials, *result.timings):
            ran = trial.status == "ok"
            row = [getattr(result, name) for name in _OF_RESULT]
            row = [visible(value) if isinstance(value, str) else value for value in row]
            row += [getattr(trial, name) for name in of_trial]
            row.append(int(ran and trial.size == result.max_size))
            row.append(int(ran and trial.size == result.recommended_size))
            yield [*row, int(report.simulated)]


def written(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()

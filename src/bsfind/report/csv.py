"""The trials as CSV: one row each, sizes in bytes, times in seconds, empty for unknown."""

from __future__ import annotations

import csv
import io

from bsfind.records import Report
from bsfind.report.visible import visible

_OF_TRIAL = (
    *("batch_size", "status", "peak_allocated_bytes", "peak_reserved_bytes", "num_alloc_retries"),
    *("steady_alloc_retries", "steps", "step_time_s", "samples_per_s"),
)
_OF_RESULT = ("precision", "remedy", "seq_len", "weights_dtype")


def to_csv(report: Report) -> str:
    """Return one row per trial."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    of_trial = (*(("axis_size",) if report.axis is not None else ()), *_OF_TRIAL)
    writer.writerow((*_OF_RESULT, *of_trial, "is_maximum", "is_recommended", "simulated"))
    for result in report.results:
        for trial in (*result.trials, *result.timings):
            ran = trial.status == "ok"
            row = [getattr(result, name) for name in _OF_RESULT]
            row = [visible(value) if isinstance(value, str) else value for value in row]
            row += [getattr(trial, name) for name in of_trial]
            row.append(int(ran and trial.size == result.max_size))
            row.append(int(ran and trial.size == result.recommended_size))
            writer.writerow((*row, int(report.simulated)))
    return stream.getvalue()

"""The trials as CSV: one row each, sizes in bytes, times in seconds, empty for unknown."""

from __future__ import annotations

import csv
import io

from bsfind.records import Report

_OF_TRIAL = (
    *("batch_size", "status", "peak_allocated_bytes", "peak_reserved_bytes", "num_alloc_retries"),
    *("steady_alloc_retries", "steps", "step_time_s", "samples_per_s"),
)
_OF_RESULT = ("precision", "remedy", "weights_dtype")


def to_csv(report: Report) -> str:
    """Return one row per trial."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*_OF_RESULT, *_OF_TRIAL, "is_maximum", "is_recommended", "simulated"))
    for result in report.results:
        for trial in (*result.trials, *result.timings):
            ran = trial.status == "ok"
            row = [getattr(result, name) for name in _OF_RESULT]
            row += [getattr(trial, name) for name in _OF_TRIAL]
            row.append(int(ran and trial.batch_size == result.max_batch_size))
            row.append(int(ran and trial.batch_size == result.recommended_batch_size))
            writer.writerow((*row, int(report.simulated)))
    return stream.getvalue()

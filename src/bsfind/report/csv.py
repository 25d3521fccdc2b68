"""The trials as CSV: one row each, sizes in bytes, times in seconds, empty for unknown."""

from __future__ import annotations

import csv
import io

from bsfind.records import Report

_TRIAL_COLUMNS = (
    "batch_size",
    "status",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "num_alloc_retries",
    "steady_alloc_retries",
    "steps",
    "step_time_s",
    "samples_per_s",
)


def to_csv(report: Report) -> str:
    """Return one row per trial."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "precision",
            "remedy",
            "weights_dtype",
            *_TRIAL_COLUMNS,
            "is_maximum",
            "is_recommended",
            "simulated",
        ]
    )
    for result in report.results:
        for trial in (*result.trials, *result.timings):
            ran = trial.status == "ok"
            writer.writerow(
                [
                    result.precision,
                    result.remedy,
                    result.weights_dtype,
                    *(getattr(trial, column) for column in _TRIAL_COLUMNS),
                    int(ran and trial.batch_size == result.max_batch_size),
                    int(ran and trial.batch_size == result.recommended_batch_size),
                    int(report.simulated),
                ]
            )
    return stream.getvalue()

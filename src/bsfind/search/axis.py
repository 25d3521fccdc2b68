"""From the numbers that a search of an axis is about to records that tell them from batch sizes.

A search has one number, whatever it is of; trials and results have it as their batch size until they leave
the search.
"""

from __future__ import annotations

import dataclasses

from bsfind.results import PrecisionResult, Recommendation
from bsfind.settings import Axis
from bsfind.trial import Trial


def trial_on(axis: Axis | None, trial: Trial) -> Trial:
    """Return a trial whose number is the size of the axis; as it is without one."""
    if axis is None:
        return trial
    return dataclasses.replace(
        trial,
        batch_size=axis.batch_size,
        axis_size=trial.batch_size,
        delivered_batch_size=None,
        delivered_axis_size=trial.delivered_batch_size,
    )


def result_on(axis: Axis | None, result: PrecisionResult) -> PrecisionResult:
    """Return a result whose numbers are sizes of the axis; as it is without one."""
    if axis is None:
        return result

    def samples(size: int | None) -> int | None:
        return None if size is None else axis.batch_size

    refused, predicted = result.refused_sizes, result.predicted
    if refused is not None:
        refused = dataclasses.replace(refused, batch_sizes=(), axis_sizes=refused.batch_sizes)
    if predicted is not None:
        predicted = dataclasses.replace(
            predicted,
            max_batch_size=axis.batch_size,
            recommended_batch_size=samples(predicted.recommended_batch_size),
            max_axis_size=predicted.max_batch_size,
            recommended_axis_size=predicted.recommended_batch_size,
        )
    confirmed = result.confirmation
    return dataclasses.replace(
        result,
        max_batch_size=samples(result.max_batch_size),
        recommended_batch_size=samples(result.recommended_batch_size),
        smallest_failed_batch_size=samples(result.smallest_failed_batch_size),
        max_axis_size=result.max_batch_size,
        recommended_axis_size=result.recommended_batch_size,
        smallest_failed_axis_size=result.smallest_failed_batch_size,
        confirmation=None if confirmed is None else trial_on(axis, confirmed),
        trials=tuple(trial_on(axis, trial) for trial in result.trials),
        timings=tuple(trial_on(axis, trial) for trial in result.timings),
        refused_sizes=refused,
        predicted=predicted,
    )


def recommendation_on(axis: Axis | None, made: Recommendation) -> Recommendation:
    """Return a recommendation whose number is the size of the axis; as it is without one."""
    if axis is None:
        return made
    return dataclasses.replace(made, batch_size=axis.batch_size, axis_size=made.batch_size)

"""Time series: what the forecasters, classifiers and regressors of transformers are called with."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from bsfind.errors import UsageError
from bsfind.inputs import InputSpec
from bsfind.workload.libraries.base import floats, integers

TIME_FEATURES = 2
"""Features of each time step, where an example is named: the day and the age, say."""


def inputs_of_series(
    model: Any, arguments: Collection[str], *, is_trained: bool
) -> Iterator[InputSpec]:
    """Yield the past of a series, and what is to follow from it.

    The shapes are those of transformers 5: `time_series_transformer`, `informer` and `autoformer` see lagged
    values in front of the context and features of each time step; `patchtst` and `patchtsmixer` see the
    context alone.

    Args:
        model: the model.
        arguments: those of its `forward`.
        is_trained: whether the values that are to be predicted are passed.

    Raises:
        UsageError: the configuration says too little.
    """
    config = model.config
    lags = getattr(config, "lags_sequence", None)
    past = config.context_length + (max(lags) if lags else 0)
    channels = config.input_size if lags else config.num_input_channels
    width = () if lags and channels == 1 else (channels,)
    yield floats("past_values", past, *width)
    if "past_time_features" in arguments:
        yield InputSpec(name="past_observed_mask", shape=(past, *width), dtype="bool")
        features = config.num_time_features + config.num_dynamic_real_features
        if not features:
            raise UsageError(
                f"`{type(model).__name__}` takes features of each time step, and its configuration has none",
                hint=f"`--model-arg num_time_features={TIME_FEATURES}` builds it for some, such as the day "
                "and the age",
            )
        yield floats("past_time_features", past, features)
        yield floats("future_time_features", config.prediction_length, features)
        if number := config.num_static_categorical_features:
            yield integers("static_categorical_features", min(config.cardinality), number)
        if number := config.num_static_real_features:
            yield floats("static_real_features", number)
    if is_trained and "future_values" in arguments:
        yield floats("future_values", config.prediction_length, *width)
    if is_trained and "target_values" in arguments:
        if type(model).__name__.endswith("Classification"):
            yield integers("target_values", config.num_targets)
        else:
            yield floats("target_values", config.num_targets)

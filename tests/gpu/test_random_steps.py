"""Steps that depend on random numbers, measured: the largest step counts, as in a prediction.

The host draws here: what is read back from a fake GPU is zero.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.gpu import LIMIT, MODELS, Gpu

X = ("--input-shape", "32,64", "--precision", "fp32")


def check(gpu: Gpu, batch_size: int, *more: str, model: str = "layers", code: int = 0) -> Any:
    target = f"{MODELS}/random_steps.py:{model}"
    size = ("--batch-size", str(batch_size))
    done = gpu.bsfind("check", target, *X, *size, *more, "--memory-limit", LIMIT, "--json")
    assert done.code == code, done.err
    return done


def test_layers_that_are_dropped_are_not_missing_from_what_is_measured(gpu: Gpu) -> None:
    drops = ("--model-arg", "keeps=python_random_by_name")
    everything = check(gpu, 256).only
    done = check(gpu, 256, *drops)
    measured = done.only
    for figure in ("peak_allocated_bytes", "peak_reserved_bytes"):
        assert measured[figure] == everything[figure]
    assert done.err.count("random_steps.py:") == 1  # one warning
    (assumed,) = [
        a for a in done.report["workload"]["assumptions"] if a["what"] == "random numbers"
    ]
    assert assumed["value"] == "those of the largest step"
    predicted = check(gpu, 256, *drops, "--gpu", "rtx-3090").only
    for figure in ("peak_allocated_bytes", "peak_reserved_bytes"):
        assert predicted[figure] == pytest.approx(measured[figure], rel=0.01)


def test_a_size_at_which_only_smaller_steps_fit_does_not_fit(gpu: Gpu) -> None:
    """The largest step is met while the random numbers are tried: that is an answer, no failure."""
    too_large = 1600  # half of the layers would fit
    done = check(gpu, too_large, "--model-arg", "keeps=torch_rand_list", code=1)
    assert done.only["status"] == "nothing_fits"


def test_first_gradients_late_and_steps_that_differ(gpu: Gpu) -> None:
    everything = check(gpu, 256).only["peak_allocated_bytes"]
    late = check(gpu, 256, model="FirstGradientLate").only
    assert late["leak"] is None
    assert late["peak_allocated_bytes"] == pytest.approx(everything, rel=0.01)
    differs = check(gpu, 256, model="Alternates")
    assert differs.only["peak_allocated_bytes"] == pytest.approx(everything, rel=0.01)
    assert "steps of a trial need different amounts of memory" in differs.err

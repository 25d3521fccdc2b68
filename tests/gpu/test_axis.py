"""`--axis`, measured: the sizes that were predicted, and the same peaks."""

from __future__ import annotations

import pytest

from tests.gpu.gpu import Gpu


@pytest.mark.parametrize(
    ("model", "inputs", "batch_size"),
    [
        ("ConvNet", ("--input-shape", "3,A,A"), 8),
        ("Decoder", ("--input", "ids=A:int64:0..500"), 4),
    ],
)
def test_what_is_measured_is_what_was_predicted(
    fake_gpu: Gpu, model: str, inputs: tuple[str, ...], batch_size: int
) -> None:
    done = fake_gpu.run(
        *(f"axes.py:{model}", *inputs, "--axis", "A", "--batch-size", str(batch_size)),
        *("--precision", "fp32", "--multiple-of", "8"),
    )
    assert done.code == 0, done.err
    result, predicted = done.only, done.only["predicted"]
    assert result["max_axis_size"] == pytest.approx(predicted["max_axis_size"], rel=0.01)
    assert result["recommended_axis_size"] == predicted["recommended_axis_size"]
    assert result["peak_allocated_bytes"] == predicted["peak_allocated_bytes"]
    assert result["peak_reserved_bytes"] == pytest.approx(
        predicted["peak_reserved_bytes"], rel=0.01
    )
    assert result["confirmation"]["axis_size"] == result["recommended_axis_size"]
    assert result["confirmation"]["batch_size"] == batch_size
    trial = result["confirmation"]
    assert trial["samples_per_s"] == pytest.approx(batch_size / trial["step_time_s"])
    assert "batch size" not in done.err

"""The loss that bsfind chooses needs the memory of the loss that people train with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.exhaustive import exhaustive

from bsfind.devices.simulated import SimulatedDevice
from bsfind.inputs import parse_input_shape
from bsfind.settings import DeviceChoice, Workload
from bsfind.trial import Trial

MODELS = Path(__file__).resolve().parents[1] / "models" / "losses.py"
TOKENS, IMAGE, PIXELS = "64:int64:0..4096", "3,64,64", "64,64:int64:0..19"


def trial(precision: str, target: str, *inputs: str, **changes: Any) -> tuple[Trial, str | None]:
    """Return a trial on a simulated GPU, and the loss that was chosen."""
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx-3090"))
    specs = tuple(parse_input_shape(text) for text in inputs)
    try:
        device.load(Workload(target=f"{MODELS}:{target}", inputs=specs, **changes), precision)
        tried = device.run_trial(8, 3)
        losses = [made.value for made in device.assumptions if made.what == "loss"]
    finally:
        if device._tracer is not None:
            device._tracer.close()
    return tried, losses[0] if losses else None


@pytest.mark.parametrize("precision", ["fp32", exhaustive("amp-fp16"), exhaustive("bf16")])
@pytest.mark.parametrize(
    ("target", "given", "targets", "step"),
    [
        ("Decoder", TOKENS, TOKENS, "decoder_step"),
        ("LabelledDecoder", TOKENS, TOKENS, "labelled_step"),
        ("RoutedDecoder", TOKENS, TOKENS, "routed_step"),
        ("Dense", IMAGE, PIXELS, "dense_step"),
    ],
)
def test_the_default_loss_takes_what_the_real_one_takes(
    precision: str, target: str, given: str, targets: str, step: str
) -> None:
    ours, name = trial(precision, target, given)
    real, none = trial(precision, target, given, targets, step=f"{MODELS}:{step}")
    assert name is not None
    assert none is None
    assert ours.peaks_by_step == real.peaks_by_step
    mean, _ = trial(precision, target, given, loss="mean")
    assert mean.peak_allocated_bytes is not None
    assert ours.peak_allocated_bytes is not None
    if (
        precision != "bf16"
    ):  # in which the stand-in makes float32 of all scores, and the loss does not
        assert mean.peak_allocated_bytes < 0.97 * ours.peak_allocated_bytes

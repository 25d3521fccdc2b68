"""A step that takes too long to trace: the error names a length of sequences that a search answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bsfind.devices import shorter_sequences, trial_programs
from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import TimeLimitError
from bsfind.settings import DeviceChoice, Workload

SCANS = Path(__file__).parents[1] / "models" / "scans.py"


def opened(seq_len: int | None) -> SimulatedDevice:
    workload = Workload(
        target=f"{SCANS}:SelectiveScan", batch_fn=f"{SCANS}:sequences", seq_len=seq_len
    )
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="4GiB"))
    device.load(workload, "fp32")
    return device


@pytest.fixture
def _few_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_programs, "_MOST_ENTRIES", 4_000)
    monkeypatch.setattr(shorter_sequences, "_SEARCHED_ENTRIES", 1_600)


@pytest.mark.usefixtures("_few_entries")
def test_the_length_that_is_named_is_searched() -> None:
    device = opened(seq_len=2048)
    try:
        with pytest.raises(TimeLimitError, match="more than 4,000 times") as raised:
            device.run_trial(4, 3)
        # The device is as it was.
        with pytest.raises(TimeLimitError):
            device.run_trial(2, 3)
    finally:
        device.close()
    named = re.search(r"`--seq-len (\d+)` is short enough", raised.value.hint or "")
    assert named is not None
    length = int(named[1])
    assert 8 <= length < 1024
    device = opened(length)
    try:
        trial = device.run_trial(4, 3)
        entries = device.tracer.steps.first_entries
    finally:
        device.close()
    assert trial.status == "ok"
    assert 400 < entries <= 1_600


@pytest.mark.usefixtures("_few_entries")
def test_no_length_is_named_where_none_was_given() -> None:
    device = opened(seq_len=None)
    try:
        with pytest.raises(TimeLimitError) as raised:
            device.run_trial(4, 3)
    finally:
        device.close()
    assert "is short enough" not in (raised.value.hint or "")

"""How exact predictions are: the file, where there is one, and nothing where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from bsfind.records import Accuracy, ErrorBound, ModelKind
from bsfind.simulation import accuracy

DOCUMENT = {
    "convolutional": {
        "runs": 60,
        "against": "torch 2.13.0 on a fake H100",
        "allocated": {"median": 0.0, "p95": 0.012},
        "reserved": {"median": 0.004, "p95": 0.05},
    }
}


@pytest.fixture(autouse=True)
def _read_again() -> Iterator[None]:
    accuracy._kinds.cache_clear()
    yield
    accuracy._kinds.cache_clear()


def test_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "accuracy.json"
    file.write_text(json.dumps(DOCUMENT))
    monkeypatch.setattr(accuracy, "_FILE", file)
    assert accuracy.measured_accuracy("convolutional") == Accuracy(
        runs=60,
        against="torch 2.13.0 on a fake H100",
        allocated=ErrorBound(median=0.0, p95=0.012),
        reserved=ErrorBound(median=0.004, p95=0.05),
    )
    assert accuracy.measured_accuracy("recurrent") is None


def test_without_the_file_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "_FILE", tmp_path / "accuracy.json")
    assert accuracy.measured_accuracy("attention") is None


def test_the_file_that_comes_with_bsfind_can_be_read() -> None:
    for kind in get_args(ModelKind):
        found = accuracy.measured_accuracy(kind)
        if found is not None:
            assert found.runs > 0
            assert found.against
            for bound in (found.allocated, found.reserved):
                assert 0 <= bound.median <= bound.p95

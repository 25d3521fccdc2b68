"""Reports to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
from example_report import example_report, predicted_report
from hypothesis import given
from hypothesis import strategies as st

from bsfind.records import record_of
from bsfind.results import SCHEMA_VERSION, PrecisionResult, Report
from bsfind.trial import Trial

SIZES = st.none() | st.integers(0, 1 << 45)
TIMES = st.none() | st.floats(1e-6, 1e6)
TRIALS = st.builds(
    Trial,
    batch_size=st.integers(1, 2**31 - 1),
    status=st.sampled_from(["ok", "oom", "error", "timeout"]),
    peak_allocated_bytes=SIZES,
    peak_reserved_bytes=SIZES,
    resident_bytes=SIZES,
    activation_bytes=SIZES,
    num_alloc_retries=st.integers(0, 99),
    steps=st.integers(0, 99),
    step_time_s=TIMES,
    samples_per_s=TIMES,
    message=st.none() | st.text(max_size=20),
)
RESULTS = st.builds(
    PrecisionResult,
    precision=st.sampled_from(["fp32", "amp-bf16"]),
    status=st.sampled_from(["ok", "nothing_fits", "error", "unsupported", "unfinished"]),
    max_batch_size=SIZES,
    confirmation=st.none() | TRIALS,
    trials=st.lists(TRIALS, max_size=3).map(tuple),
    message=st.none() | st.text(max_size=20),
)


def through_json(report: Report) -> Report:
    return Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False)))


@pytest.mark.parametrize("make", [example_report, predicted_report])
def test_the_example_comes_back(make: Callable[[], Report]) -> None:
    assert through_json(make()) == make()


def test_what_is_simulated_says_so() -> None:
    assert predicted_report().to_json()["simulated"] is True
    assert example_report().to_json()["simulated"] is False
    assert example_report().to_json()["prediction"] is None


@given(
    results=st.lists(RESULTS, max_size=2).map(tuple),
    device=st.booleans(),
    milliseconds=st.integers(0, 10**8),
)
def test_any_results_come_back(
    results: tuple[PrecisionResult, ...], device: bool, milliseconds: int
) -> None:
    report = dataclasses.replace(
        example_report(), results=results, duration_s=milliseconds / 1000, message="because"
    )
    if not device:
        report = dataclasses.replace(
            report,
            device=None,
            budget_bytes=None,
            model=None,
            recommendation=None,
            warnings=(),
            status="failed",
        )
    assert through_json(report) == report


def test_the_budget_stands_with_the_device() -> None:
    report = example_report()
    document = report.to_json()
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["device"]["budget_bytes"] == report.budget_bytes
    assert "budget_bytes" not in document


def test_times_are_rounded_to_milliseconds() -> None:
    report = dataclasses.replace(example_report(), duration_s=1.23456)
    assert report.to_json()["duration_s"] == 1.235


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        example_report().status = "failed"  # type: ignore[misc]


@pytest.mark.parametrize("version", ["2.0", None, 1.0])
def test_documents_of_another_version_are_refused(version: object) -> None:
    document = {**example_report().to_json(), "schema_version": version}
    with pytest.raises(ValueError, match=f"schema version {version}, not 1.0"):
        Report.from_json(document)


@pytest.mark.parametrize("data", [{"batch_size": 1}, {"batch_size": 1, "status": "ok", "speed": 2}])
def test_a_record_needs_its_fields_and_no_others(data: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        record_of(Trial, data)

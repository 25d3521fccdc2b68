"""Two reports, compared: what counts as worse, what is told, what is no change of the code."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from example_report import (
    compared_report,
    example_report,
    ok,
    out_of_memory,
    predicted_report,
)
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bsfind.report.diff import Change, Difference, compare, print_difference
from bsfind.results import PrecisionResult, Report
from bsfind.units import GIB, MIB

Golden = Callable[[str, str], None]


def found(
    most: int | None, recommended: int | None, allocated: int, reserved: int, size: int = 100
) -> PrecisionResult:
    return PrecisionResult(
        precision="fp32",
        status="ok" if most else "nothing_fits",
        max_batch_size=most,
        recommended_batch_size=recommended,
        trials=(ok(size, allocated, reserved, None), out_of_memory(500)),
    )


def report(*results: PrecisionResult, **changes: Any) -> Report:
    return dataclasses.replace(example_report(), results=results, recommendation=None, **changes)


def checked(batch_size: int, result: PrecisionResult) -> Report:
    base = report(result)
    return dataclasses.replace(base, search={**base.search, "batch_size": batch_size})


def by_figure(difference: Difference, row: int = 0) -> dict[str, Change]:
    return {change.figure: change for change in difference.rows[row].changes}


OLD = found(200, 190, 10 * GIB, 11 * GIB)


def test_a_report_is_the_same_as_itself() -> None:
    difference = compare(compared_report(), compared_report(), 0.0)
    assert difference.verdict == "same"
    assert difference.warnings == (
        "amp-bf16 + compile has no answer in the old report: error",
        "amp-bf16 + compile has no answer in the new report: error",
    )
    assert [row.name for row in difference.rows] == [
        *("fp32", "amp-bf16", "amp-bf16 + checkpointing"),
    ]


@pytest.mark.parametrize(
    ("new", "figure", "verdict"),
    [
        (found(195, 190, 10 * GIB, 11 * GIB), "max_batch_size", "worse"),
        (found(196, 190, 10 * GIB, 11 * GIB), "max_batch_size", "same"),  # exactly the threshold
        (found(204, 190, 10 * GIB, 11 * GIB), "max_batch_size", "same"),
        (found(205, 190, 10 * GIB, 11 * GIB), "max_batch_size", "better"),
        (found(200, 186, 10 * GIB, 11 * GIB), "recommended_batch_size", "worse"),
        (found(200, None, 10 * GIB, 11 * GIB), "recommended_batch_size", "worse"),
        (found(200, 190, 11 * GIB, 11 * GIB), "peak_allocated", "worse"),
        (found(200, 190, 9 * GIB, 11 * GIB), "peak_allocated", "better"),
        (found(200, 190, 10 * GIB, 12 * GIB), "peak_reserved", "worse"),
        (found(200, 190, 10 * GIB, 10 * GIB), "peak_reserved", "better"),
    ],
)
def test_verdicts(new: PrecisionResult, figure: str, verdict: str) -> None:
    difference = compare(report(OLD), report(new), 0.02)
    assert by_figure(difference)[figure].verdict == verdict
    others = {name: c.verdict for name, c in by_figure(difference).items() if name != figure}
    assert set(others.values()) == {"same"}
    assert difference.verdict == verdict


def test_what_is_worse_outweighs_what_is_better() -> None:
    difference = compare(report(OLD), report(found(300, 280, 11 * GIB, 11 * GIB)), 0.02)
    assert difference.verdict == "worse"
    assert by_figure(difference)["max_batch_size"].verdict == "better"


def test_what_does_not_fit_any_more() -> None:
    gone = dataclasses.replace(found(None, None, 0, 0), trials=(out_of_memory(1),))
    difference = compare(report(OLD), report(gone), 0.5)
    assert difference.verdict == "worse"
    most = by_figure(difference)["max_batch_size"]
    assert (most.old, most.new, most.part) == (200, None, None)
    assert compare(report(gone), report(OLD), 0.5).verdict == "better"


def test_what_had_an_answer_and_fails_now_is_worse() -> None:
    broken = PrecisionResult(precision="fp32", status="error", message="TypeError")
    difference = compare(report(OLD), report(broken), 0.02)
    assert difference.verdict == "worse"
    assert "fp32 has no answer in the new report: error" in difference.warnings


def test_a_precision_that_only_one_has_is_told_and_not_judged() -> None:
    amp = dataclasses.replace(OLD, precision="amp-bf16")
    difference = compare(report(OLD, amp), report(OLD), 0.02)
    assert difference.verdict == "same"
    assert difference.warnings == ("amp-bf16 is not in the new report",)


@pytest.mark.parametrize("status", ["unfinished", "unsupported"])
def test_a_search_that_was_stopped_is_not_judged(status: Any) -> None:
    stopped = dataclasses.replace(OLD, status=status, max_batch_size=5)
    difference = compare(
        report(OLD), report(stopped, status="partial", message="the time budget is spent"), 0.02
    )
    assert difference.rows == ()
    assert not difference.is_judged
    assert difference.warnings == (
        "the new report is partial: the time budget is spent",
        f"fp32 has no answer in the new report: {status}",
    )


def test_peaks_are_those_of_the_largest_size_that_ran_in_both() -> None:
    old = dataclasses.replace(OLD, trials=(ok(5, GIB, GIB, None), *OLD.trials))
    new = dataclasses.replace(
        OLD, trials=(ok(5, 2 * GIB, GIB, None), ok(100, 10 * GIB, 11 * GIB, None))
    )
    peaks = by_figure(compare(report(old), report(new), 0.02))["peak_allocated"]
    assert (peaks.old_batch_size, peaks.new_batch_size, peaks.verdict) == (100, 100, "same")


def test_peaks_of_different_sizes_are_shown_and_not_judged() -> None:
    new = found(200, 150, 5 * GIB, 20 * GIB, size=150)
    old = found(200, 100, 10 * GIB, 11 * GIB, size=100)
    difference = compare(report(old), report(new), 0.5)
    peaks = by_figure(difference)["peak_reserved"]
    assert (peaks.old_batch_size, peaks.new_batch_size, peaks.verdict) == (100, 150, None)
    assert difference.verdict == "same"


def test_a_segment_more_is_rounding() -> None:
    old = found(200, 190, 18 * MIB, 22 * MIB)
    for more, verdict in ((20, "same"), (22, "worse")):
        new = found(200, 190, 18 * MIB, (22 + more) * MIB)
        difference = compare(report(old), report(new), 0.02)
        assert by_figure(difference)["peak_reserved"].verdict == verdict


def test_two_checks() -> None:
    fits = found(64, 64, 6 * GIB, 7 * GIB, size=64)
    gone = dataclasses.replace(found(None, None, 0, 0), trials=(out_of_memory(64),))
    difference = compare(checked(64, fits), checked(64, gone), 0.02)
    assert difference.verdict == "worse"
    assert list(by_figure(difference)) == ["max_batch_size"]
    assert compare(checked(64, fits), checked(64, fits), 0.0).verdict == "same"


def test_a_run_and_a_check_share_peaks_alone() -> None:
    fits = found(100, 100, 11 * GIB, 11 * GIB)
    difference = compare(report(OLD), checked(100, fits), 0.02)
    assert list(by_figure(difference)) == ["peak_allocated", "peak_reserved"]
    assert difference.verdict == "worse"
    assert any("batch size none → 100" in text for text in difference.warnings)
    elsewhere = checked(64, found(64, 64, 11 * GIB, 11 * GIB, size=64))
    assert not compare(report(OLD), elsewhere, 0.02).is_judged


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda r: predicted_report(), "different devices: NVIDIA GeForce RTX 4090 (23.5 GiB), "),
        (
            lambda r: dataclasses.replace(
                r, device=dataclasses.replace(r.device, capacity_bytes=20 * GIB)
            ),
            "different capacities: 22.9 GiB, 20.0 GiB",
        ),
        (
            lambda r: dataclasses.replace(r, workload={**r.workload, "optimizer": "sgd"}),
            "different workloads: optimizer adamw → sgd",
        ),
        (
            lambda r: dataclasses.replace(r, search={**r.search, "headroom": "10%"}),
            "different searches: headroom 5% → 10%",
        ),
        (
            lambda r: dataclasses.replace(r, environment={**r.environment, "torch": "2.14.0"}),
            "different versions of torch: 2.13.0, 2.14.0",
        ),
    ],
)
def test_what_else_differs_is_a_warning(change: Callable[[Any], Report], warning: str) -> None:
    (told,) = compare(example_report(), change(example_report()), 0.02).warnings
    assert told.startswith(warning)


def test_where_the_code_lies_is_no_difference() -> None:
    moved = {**example_report().workload, "app_dir": "/somewhere/else"}
    assert compare(example_report(), report(workload=moved), 0.02).warnings == (
        "fp32 is not in the new report",
        "amp-bf16 is not in the new report",
    )


@given(
    old=st.integers(1, 10**6),
    new=st.integers(1, 10**6),
    threshold=st.floats(0, 0.99, allow_nan=False),
)
def test_beyond_the_threshold_is_beyond_it(old: int, new: int, threshold: float) -> None:
    before = found(old, None, GIB, GIB)
    difference = compare(report(before), report(found(new, None, GIB, GIB)), threshold)
    change = by_figure(difference)["max_batch_size"]
    assert change.part is not None
    if abs(new - old) > threshold * old:
        assert change.verdict == ("better" if new > old else "worse")
    else:
        assert change.verdict == "same"
    assert (change.part > 0) == (new > old)


def test_json() -> None:
    document = compare(report(OLD), report(found(150, 140, 10 * GIB, 11 * GIB)), 0.02).to_json()
    json.dumps(document, allow_nan=False)
    assert document["verdict"] == "worse"
    (result,) = document["results"]
    most, *_, reserved = result["changes"]
    assert most == {
        "figure": "max_batch_size",
        "old": 200,
        "new": 150,
        "change": -0.25,
        "old_batch_size": None,
        "new_batch_size": None,
        "verdict": "worse",
    }
    assert (reserved["figure"], reserved["old"]) == ("peak_reserved_bytes", 11 * GIB)
    assert reserved["old_batch_size"] == reserved["new_batch_size"] == 100


# ---------------------------------------------------------------------------------------- printed


def changed() -> Difference:
    fp32, amp = example_report().results
    worse = dataclasses.replace(
        fp32,
        max_batch_size=205,
        recommended_batch_size=192,
        trials=(ok(5, 1012 * MIB, 1100 * MIB, 0.02), ok(192, 20889 * MIB, 22118 * MIB, 0.5)),
    )
    better = dataclasses.replace(amp, max_batch_size=512)
    return compare(example_report(), report(worse, better), 0.02)


def printed(difference: Difference, width: int) -> str:
    stream = io.StringIO()
    print_difference(difference, Console(file=stream, width=width, highlight=False, markup=False))
    return stream.getvalue()


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_table(width: int, golden: Golden) -> None:
    golden(f"diff-{width}.txt", printed(changed(), width))


@given(width=st.integers(20, 140))
def test_no_figure_is_cut(width: int) -> None:
    difference = changed()
    text = printed(difference, width)
    assert "…" not in text
    for row in difference.to_json()["results"]:
        for change in row["changes"]:
            if change["figure"].endswith("batch_size"):
                assert f"{change['old']:,}" in text
                assert f"{change['new']:,}" in text


def test_where_nothing_changed_the_threshold_is_named() -> None:
    same = compare(example_report(), example_report(), 0.005)
    assert "No figure changed by more than 0.5%." in printed(same, 80)

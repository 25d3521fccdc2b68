"""The yardsticks of the benchmarks: a wrong one would make every figure wrong."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest
from benchmarks import cudnn_trees_accuracy, peers_table, published_points
from benchmarks.convolution_layers import HELD_OUT, read_layers
from benchmarks.convolution_samples import Sample, sample_of
from benchmarks.exact import largest, runs_in_fresh_process
from hypothesis import given
from hypothesis import strategies as st


@given(truth=st.integers(0, 10**7), near=st.integers(-3, 10**7))
def test_the_bisection_is_exact(truth: int, near: int) -> None:
    assert largest(lambda batch_size: batch_size <= truth, near) == truth


@given(truth=st.integers(1, 10**6), near=st.integers(1, 10**6))
def test_the_bisection_tries_no_size_twice_and_few_near_the_truth(truth: int, near: int) -> None:
    tried: list[int] = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= truth

    largest(fits, near)
    assert min(tried) >= 1
    assert len(tried) == len(set(tried))
    assert len(tried) <= 2 + 2 * (abs(truth - near) + 1).bit_length()


# Python 3.12 warns of forks beside threads, which a test runner may have.
_FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


ROOT = Path(__file__).resolve().parents[2]


class _OutOfMemoryError(RuntimeError):
    pass


def _step(batch_size: int) -> bool | None:
    if batch_size == 1:
        return None
    if batch_size == 2:
        return False
    if batch_size == 3:
        raise _OutOfMemoryError("CUDA out of memory")
    if batch_size == 4:
        os.kill(os.getpid(), 9)
    raise ValueError("a bug")


@_FORKS
def test_a_fresh_process_runs_or_does_not() -> None:
    assert [runs_in_fresh_process(_step, size) for size in (1, 2, 3)] == [True, False, False]


@_FORKS
@pytest.mark.parametrize("batch_size", [4, 5])
def test_what_fails_otherwise_is_no_answer(batch_size: int) -> None:
    with pytest.raises(RuntimeError, match=f"batch size {batch_size}"):
        runs_in_fresh_process(_step, batch_size)


def _row(tool: str, batch_size: int | None, **fields: object) -> dict[str, object]:
    row = {"model": "net", "precision": "fp32", "tool": tool, "batch_size": batch_size}
    costs = {"trials": [], "out_of_memory": 2, "steps": 7, "seconds": 4.4, "recommended": None}
    part = batch_size / 100 if batch_size else None
    return {
        **row,
        **costs,
        "exact": 100,
        "of_the_maximum": part,
        "was_run": True,
        "runs": True,
    } | fields


def test_the_table_of_peers_tells_answers_that_never_ran() -> None:
    document = {
        "gpu": "Card",
        "gpu_bytes": 8 << 30,
        "torch": "2",
        "date": "2026-01-01",
        "tools": {name: {"label": name, "version": "1"} for name in ("a", "b", "c", "d")},
        "rows": [
            _row("a", 99),
            _row("b", 90, was_run=False, runs=False),
            _row("c", None, was_run=False, runs=None),
        ],
    }
    lines = peers_table.markdown(document).splitlines()
    assert "| a | 99.0% | 99.0% | 0.0 | 2.0 | 7.0 | 4 | 1 of 1 | 1 of 1 |" in lines
    assert "| b | 90.0% | 90.0% | 0.0 | 2.0 | 7.0 | 4 | 0 of 1 | 0 of 1 |" in lines
    assert "| net | fp32 | 100 | 99 (99%) | 90\\*† (90%) | none | – |" in lines


def test_the_readme_quotes_the_table_of_peers_as_it_was_written() -> None:
    readme = (ROOT / "README.md").read_text()
    (file,) = re.findall(r"<!-- the first table of (\S+) -->", readme)
    written = [line for line in (ROOT / file).read_text().splitlines() if line.startswith("|")]
    first = list(itertools.takewhile(lambda line: not line.startswith("| model"), written))
    assert len(first) > 2
    assert "\n".join(first) in readme


def test_no_layer_of_a_held_out_model_is_among_those_to_fit_to():
    layers = read_layers()
    held_out = {each for name, some in layers.items() if name.startswith(HELD_OUT) for each in some}
    others = [
        each for name, some in layers.items() if not name.startswith(HELD_OUT) for each in some
    ]
    assert len(held_out) > 300
    assert len(others) == len(set(others)) > 10_000
    assert held_out.isdisjoint(others)


def test_a_sample_is_what_its_line_says():
    numbers = [[14, 14], 32, [3, 3], [1, 1], [1, 1], [1, 1], 1]
    row = ["forward", "float16", True, 4, 16, *numbers, 12345, "resnet50"]
    sample = sample_of("t4", row)
    assert sample == sample_of("t4", sample.row)
    assert sample.workspace == 12345
    assert sample.problem.out_size == (14, 14)
    assert sample.is_held_out
    assert sample_of("t4", row[:-1]).row == Sample("t4", sample.problem, 12345).row


def test_an_archive_with_all_trees_is_as_large_as_it_is():
    path = cudnn_trees_accuracy.SHIPPED
    sizes = [cudnn_trees_accuracy.size_with(path, count) for count in (None, 7, 3, 1)]
    assert sizes[0] == sizes[1] == path.stat().st_size
    assert sizes == sorted(sizes, reverse=True)


# ------------------------------------------------------------------------- figures of real GPUs

POINTS = list(published_points.points())


@pytest.mark.parametrize("row", POINTS, ids=lambda row: str(row["id"]))
def test_a_published_figure_says_what_it_is_and_where_from(row: dict[str, str]) -> None:
    assert row["url"].startswith("https://")
    assert row["reading"] in ("allocated", "reserved", "process")
    assert row["step"] in ("", "first")
    assert row["blind"] in ("yes", "no")
    assert int(row["published_bytes"]) > 10**6
    assert int(row["outside_pool_bytes"]) >= 0
    _, _, _, check, target, *options = published_points.command(row)
    assert (check, ":" in target) == ("check", True)
    assert "--gpu" in options
    assert "--batch-size" in options
    # What changes the model or the prediction is stated.
    changes = {"ddp=true", "old_softmax=true", "--grad-accum"} & {*options}
    assert bool(row["corrections"]) >= bool(
        changes or row["step"] or int(row["outside_pool_bytes"])
    )


def test_the_published_figures_have_names_of_their_own() -> None:
    assert len({row["id"] for row in POINTS}) == len(POINTS) > 30


def _report(**trial: object) -> dict[str, object]:
    filled = {"peak_allocated_bytes": 70, "peak_reserved_bytes": 90, "peaks_by_step": [60, 70]}
    result = {"status": "ok", "message": None, "trials": [{"status": "ok", **filled, **trial}]}
    return {"results": [result], "device": {"context_bytes": 1000}}


@pytest.mark.parametrize(
    ("reading", "step", "outside", "found"),
    [
        ("allocated", "", 0, 70),
        ("allocated", "first", 0, 60),
        ("allocated", "", 5, 65),
        ("reserved", "", 0, 90),
        ("process", "", 0, 1090),
    ],
)
def test_what_is_read_from_a_report(reading: str, step: str, outside: int, found: int) -> None:
    row = {"reading": reading, "step": step, "outside_pool_bytes": str(outside)}
    assert published_points.reading(row, _report()) == found


def test_what_is_not_there_is_told() -> None:
    row = {"reading": "allocated", "step": "", "outside_pool_bytes": "0"}
    failed = {"results": [{"status": "error", "message": "no peft", "trials": []}]}
    assert published_points.reading(row, failed) == "no peft"


def test_the_summary_of_published_figures() -> None:
    rows = [{"error": error} for error in (0.01, -0.05, None, 0.002)]
    assert published_points.summary(rows) == {
        "figures": 4,
        "computed": 3,
        "median_error": 0.01,
        "within_3_percent": 2,
        "largest_error": 0.05,
    }

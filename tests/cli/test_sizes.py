"""Batch sizes that a model does not accept, and precisions in which it fails: what is said, exit codes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.cli.processes import MODELS, bsfind, document, screen_and_report
from tests.exhaustive import exhaustive

pytestmark = pytest.mark.slow

CHOOSY = f"{MODELS}/choosy.py"
IMAGES = ("--input-shape", "3,32,32", "--gpu", "2GiB")
VECTOR = ("--input-shape", "16", "--gpu", "2GiB")
FP32 = ("--precision", "fp32")


def refused(*arguments: str) -> tuple[dict[str, Any], Any]:
    """Return the only result of a search, and what it says of sizes that the model refuses."""
    (result,) = document("run", *arguments, *FP32)["results"]
    return result, result["refused_sizes"]


@pytest.mark.parametrize(
    ("model", "multiple"),
    [
        (("Groups",), 4),
        (("Groups", "--model-arg", "group=6"), 6),
        exhaustive(("Groups", "--model-arg", "group=16"), 16),
        (("Clips",), 8),
    ],
)
def test_groups_of_samples(model: tuple[str, ...], multiple: int) -> None:
    done, report = screen_and_report("run", f"{CHOOSY}:{model[0]}", *model[1:], *IMAGES, *FP32)
    (result,) = report["results"]
    sizes = result["refused_sizes"]
    assert re.search(
        rf"^Batch sizes .* fail with `RuntimeError: shape .* is invalid .*`; multiples of {multiple} run\.$",
        done.stdout,
        re.MULTILINE,
    )
    assert ("Batch sizes 5 and 6 fail with" in done.stdout) == (model == ("Groups",))
    assert result["max_batch_size"] % multiple == 0
    assert result["recommended_batch_size"] % multiple == 0
    assert result["recommended_batch_size"] > 1000  # memory is the limit
    assert result["smallest_failed_batch_size"] == result["max_batch_size"] + multiple
    assert sizes["multiple_of"] == multiple
    assert sizes["accepted"] == f"multiples of {multiple}"
    assert sizes["error"].startswith("RuntimeError: shape ")
    assert all(size % multiple for size in sizes["batch_sizes"])


@pytest.mark.parametrize("multiple", [4, 32])
def test_the_multiple_that_is_asked_for_holds_for_every_trial(multiple: int) -> None:
    result, sizes = refused(f"{CHOOSY}:Groups", *IMAGES, "--multiple-of", str(multiple))
    assert sizes is None
    assert result["max_batch_size"] is not None
    assert all(trial["batch_size"] % multiple == 0 for trial in result["trials"])


def test_a_queue_that_the_batch_has_to_divide() -> None:
    result, sizes = refused(f"{CHOOSY}:Queue", *IMAGES)
    assert result["max_batch_size"] == result["recommended_batch_size"] == 4096
    assert sizes["accepted"] == "divisors of 4096"
    assert sizes["error"].startswith("AssertionError in choosy.py:")


def test_one_size_only() -> None:
    done, report = screen_and_report("run", f"{CHOOSY}:OneSize", *VECTOR, *FP32)
    (result,) = report["results"]
    assert result["max_batch_size"] == result["recommended_batch_size"] == 24
    assert result["refused_sizes"]["accepted"] is None
    assert re.search(
        r"^Batch sizes .* and \d+ others fail with `.*`; 24 runs\.$", done.stdout, re.M
    )


def test_a_later_refusal_does_not_end_the_search() -> None:
    result, sizes = refused(f"{CHOOSY}:AtMost100", *VECTOR)
    assert result["max_batch_size"] == result["recommended_batch_size"] == 100
    assert result["smallest_failed_batch_size"] == 101
    assert sizes["error"] == "ValueError: too many samples for me"
    assert 101 in sizes["batch_sizes"]
    assert max(t["batch_size"] for t in result["trials"] if t["status"] == "ok") == 100


def test_micro_batches_are_accepted_sizes() -> None:
    common = ("--global-batch", "1001", "--max-batch-size", "300")
    result, _ = refused(f"{CHOOSY}:Groups", *IMAGES, *common)
    assert result["global_batch"]["micro_batch_size"] % 4 == 0


def test_a_model_that_runs_at_no_size() -> None:
    done, report = screen_and_report("run", f"{CHOOSY}:Misshapen", *VECTOR, code=4)
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1
    assert "batch size 5 in fp32" in done.stderr  # the first error
    assert "Other batch sizes were tried: " in done.stderr
    assert report["recommendation"] is None
    assert all(len(result["trials"]) <= 10 for result in report["results"])


def test_check_of_a_size_that_the_model_refuses() -> None:
    done = bsfind("check", f"{CHOOSY}:OneSize", *VECTOR, *FP32, "-b", "23")
    assert done.returncode == 4
    assert "batch size 23 in fp32" in done.stderr
    assert "Other batch sizes" not in done.stderr
    assert bsfind("check", f"{CHOOSY}:OneSize", *VECTOR, *FP32, "-b", "24").returncode == 0


def test_batch_norm_refuses_one_sample() -> None:
    norm = f"{MODELS}/well_behaved.py:Normalised"
    done = bsfind("check", norm, *VECTOR, *FP32, "-b", "1")
    assert done.returncode == 1
    assert done.stderr == ""
    reason = "batch norm refuses a batch of one in training; 2 is the smallest to try"
    assert f"batch size 1 does not run: {reason}" in done.stdout
    report = document("run", norm, *VECTOR, *FP32, "--max-batch-size", "1", code=1)
    assert report["results"][0]["message"] == reason
    assert report["results"][0]["trials"][0]["error_kind"] == "batch_norm"


# ------------------------------------------------------------------------- one precision fails

LAYER = ("--input-shape", "1024", "--gpu", "2GiB")


@pytest.mark.parametrize(
    ("how", "half"), [("raises", "True"), ("raises", "False"), ("leaks", "True"), ("dies", "True")]
)
def test_the_other_precision_answers(how: str, half: str) -> None:
    model = (f"{CHOOSY}:FailsIn", "--model-arg", f"half={half}", "--model-arg", f"how={how}")
    failed, answers = ("amp-bf16", "fp32") if half == "True" else ("fp32", "amp-bf16")
    done, report = screen_and_report("run", *model, *LAYER, "--max-batch-size", "1000")
    assert report["status"] == "complete"
    assert [warning["code"] for warning in report["warnings"]] == ["precision_failed"]
    assert f"warning: {failed} failed: " in done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(rf"^{failed} +failed +–", done.stdout, re.MULTILINE)
    assert f"Train with batch size 1000 in {answers}" in done.stdout
    if how == "raises":
        assert f"{failed}: `RuntimeError: not in this precision` in choosy.py" in done.stdout


def test_a_check_is_of_the_precision_that_answers() -> None:
    model = (f"{CHOOSY}:FailsIn", "--model-arg", "half=True", "--model-arg", "how=raises")
    done = bsfind("run", *model, *LAYER, "-q", "--max-batch-size", "1000")
    assert (done.returncode, done.stdout) == (0, "1000\n")
    assert "warning: amp-bf16 failed: " in done.stderr
    assert bsfind("check", *model, *LAYER, "-b", "64").returncode == 0
    assert bsfind("check", *model, *LAYER, "-b", "100000000").returncode == 1


def test_a_size_from_half_a_search_is_no_recommendation() -> None:
    model = (f"{CHOOSY}:FailsIn", "--model-arg", "half=False", "--model-arg", "how=dies")
    done, report = screen_and_report("run", *model, *LAYER, *FP32, code=4)
    assert "Train with" not in done.stdout
    assert re.search(
        r"fp32: the worker was killed by SIGKILL, .*; before that, 5 fits$", done.stdout, re.M
    )
    assert bsfind("run", *model, *LAYER, *FP32, "-q").stdout == ""
    assert report["recommendation"] is None
    assert report["results"][0]["recommended_batch_size"] is None


DELIVERIES = f"{MODELS}/deliveries.py"
NET = (f"{DELIVERIES}:Net", "--gpu", "2GiB", *FP32)


@pytest.mark.parametrize(
    ("how", "delivered"),
    [
        (("--batch-fn", f"{DELIVERIES}:loader"), 500),
        (("--input-shape", "8", "--step", f"{DELIVERIES}:capped_step"), 300),
    ],
)
def test_the_search_ends_at_the_batch_that_is_delivered(
    how: tuple[str, ...], delivered: int
) -> None:
    report = document("run", *NET, *how)
    (result,) = report["results"]
    assert result["max_batch_size"] == result["recommended_batch_size"] == delivered
    assert result["is_maximum_proven"]
    assert max(t["batch_size"] for t in result["trials"] if t["status"] == "ok") == delivered
    (warning,) = [warning for warning in report["warnings"] if warning["code"] == "short_batch"]
    assert f"delivered {delivered}" in warning["message"]
    made = {made["what"]: made["value"] for made in report["workload"]["assumptions"]}
    assert made["largest batch size"] == str(delivered)
    assert bsfind("check", *NET, *how, "-b", str(delivered)).returncode == 0
    done = bsfind("check", *NET, *how, "-b", "600")
    assert done.returncode == 4
    assert f"was asked for 600 samples and delivered {delivered}" in done.stderr


def test_a_loader_without_a_whole_batch_refuses_the_size() -> None:
    report = document("run", *NET, "--batch-fn", f"{DELIVERIES}:whole_batches")
    (result,) = report["results"]
    assert result["max_batch_size"] == 500
    assert (
        "raised StopIteration: its iterator has no such batch" in result["refused_sizes"]["error"]
    )


def test_sizes_that_cannot_be_traced_end_the_search_and_not_the_answer() -> None:
    model = (f"{CHOOSY}:ValuesAbove200", *VECTOR)
    done = bsfind("run", *model, *FP32)
    assert done.returncode == 5, done.stderr
    assert "Train with batch size 200 in fp32 at least (the search is not complete)" in done.stdout
    assert "200 fits, 201 cannot be traced: more may fit." in done.stdout
    assert "batch size 201 cannot be traced, smaller ones can: `aten::nonzero`" in done.stderr
    assert bsfind("check", *model, "-b", "300", *FP32).returncode == 4


def test_a_batch_function_that_ignores_the_size_is_refused() -> None:
    done = bsfind("run", *NET, "--batch-fn", f"{DELIVERIES}:constant")
    assert done.returncode == 4
    assert re.search(r"ignores the batch size: 5 samples .* \(7\) is the same", done.stderr)
    assert bsfind("check", *NET, "--batch-fn", f"{DELIVERIES}:constant", "-b", "7").returncode == 0


def test_batches_in_whole_groups_are_searched_among_these() -> None:
    (result,) = document("run", *NET, "--batch-fn", f"{DELIVERIES}:whole_groups")["results"]
    assert result["max_batch_size"] > 10_000  # memory is the limit
    assert result["refused_sizes"]["multiple_of"] == 64


def test_a_step_that_ignores_the_size_is_told() -> None:
    report = document("run", *NET, "--input-shape", "8", "--step", f"{DELIVERIES}:own_batch")
    assert "batch_ignored" in {warning["code"] for warning in report["warnings"]}


def test_rows_for_each_sample_are_assumed() -> None:
    report = document("check", *NET, "--batch-fn", f"{DELIVERIES}:views", "-b", "100")
    made = {made["what"]: made["value"] for made in report["workload"]["assumptions"]}
    assert made["rows of a batch"] == "2 for each sample of the batch size"


def test_the_largest_of_batches_that_vary_decides() -> None:
    varying = document("check", *NET, "--batch-fn", f"{DELIVERIES}:sequences", "-b", "1000")
    longest = document("check", *NET, "--batch-fn", f"{DELIVERIES}:longest_sequences", "-b", "1000")
    (trial,), (alike,) = (report["results"][0]["trials"] for report in (varying, longest))
    assert trial["batches"] == {
        "batches": 19,
        "least_elements": 8 * 8 * 1000,
        "most_elements": 40 * 8 * 1000,
    }
    assert trial["steps"] == trial["traced_steps"] == 20  # none stands for another
    # Blocks that a shorter batch left are not split: up to a few percent apart.
    assert trial["peak_allocated_bytes"] == pytest.approx(alike["peak_allocated_bytes"], rel=0.01)
    assert alike["batches"] is None


def test_a_search_whose_batches_vary_says_how_much() -> None:
    search = (*NET, "--batch-fn", f"{DELIVERIES}:sequences", "--max-batch-size", "3000")
    done, report = screen_and_report("run", *search)
    (result,) = report["results"]
    assert result["recommended_batch_size"] == 3000
    assert all(trial["batches"]["batches"] >= 9 for trial in result["trials"])
    assert [warning["code"] for warning in report["warnings"]] == ["batches_vary"]
    assert "batches (the largest of 19, 960,000 elements)" in done.stdout
    assert "which had 192,000 to 960,000 elements; larger ones are not covered" in done.stderr

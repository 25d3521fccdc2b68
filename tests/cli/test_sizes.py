"""Batch sizes that a model does not accept, and precisions in which it fails: what is said, exit codes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.cli.test_prediction import MODELS, bsfind, document

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
        (("Groups", "--model-arg", "group=16"), 16),
        (("Clips",), 8),
    ],
)
def test_groups_of_samples(model: tuple[str, ...], multiple: int) -> None:
    result, sizes = refused(f"{CHOOSY}:{model[0]}", *model[1:], *IMAGES)
    assert result["max_batch_size"] % multiple == 0
    assert result["recommended_batch_size"] % multiple == 0
    assert result["recommended_batch_size"] > 1000  # memory is the limit
    assert result["smallest_failed_batch_size"] == result["max_batch_size"] + multiple
    assert sizes["multiple_of"] == multiple
    assert sizes["accepted"] == f"multiples of {multiple}"
    assert sizes["error"].startswith("RuntimeError: shape ")
    assert all(size % multiple for size in sizes["batch_sizes"])


def test_the_first_screen_says_what_runs_and_what_does_not() -> None:
    done = bsfind("run", f"{CHOOSY}:Groups", *IMAGES)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^Batch sizes 5 and 6 fail with `RuntimeError: shape .* is invalid .*`; multiples of 4 run\.$",
        done.stdout,
        re.MULTILINE,
    )


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
    result, sizes = refused(f"{CHOOSY}:OneSize", *VECTOR)
    assert result["max_batch_size"] == result["recommended_batch_size"] == 24
    assert sizes["accepted"] is None
    done = bsfind("run", f"{CHOOSY}:OneSize", *VECTOR, *FP32)
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
    done = bsfind("run", f"{CHOOSY}:Misshapen", *VECTOR)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.count("Traceback") == 1
    assert "batch size 5 in fp32" in done.stderr  # the first error
    assert "Other batch sizes were tried: " in done.stderr
    report = document("run", f"{CHOOSY}:Misshapen", *VECTOR, code=4)
    assert report["recommendation"] is None
    assert all(len(result["trials"]) <= 10 for result in report["results"])


def test_check_of_a_size_that_the_model_refuses() -> None:
    done = bsfind("check", f"{CHOOSY}:OneSize", *VECTOR, "-b", "23")
    assert done.returncode == 4
    assert "batch size 23 in fp32" in done.stderr
    assert "Other batch sizes" not in done.stderr
    assert bsfind("check", f"{CHOOSY}:OneSize", *VECTOR, "-b", "24").returncode == 0


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
    done = bsfind("run", *model, *LAYER, "-q", "--max-batch-size", "1000")
    assert (done.returncode, done.stdout) == (0, "1000\n")
    assert f"warning: {failed} failed: " in done.stderr
    assert "Traceback" not in done.stderr
    if how == "raises":
        done = bsfind("run", *model, *LAYER, "--max-batch-size", "1000")
        assert re.search(rf"^{failed} +failed +–", done.stdout, re.MULTILINE)
        assert f"Train with batch size 1000 in {answers}" in done.stdout
        assert f"{failed}: `RuntimeError: not in this precision` in choosy.py" in done.stdout
        report = document("run", *model, *LAYER, "--max-batch-size", "1000")
        assert report["status"] == "complete"
        assert [warning["code"] for warning in report["warnings"]] == ["precision_failed"]
        assert bsfind("check", *model, *LAYER, "-b", "64").returncode == 0
        assert bsfind("check", *model, *LAYER, "-b", "100000000").returncode == 1


def test_a_size_from_half_a_search_is_no_recommendation() -> None:
    model = (f"{CHOOSY}:FailsIn", "--model-arg", "half=False", "--model-arg", "how=dies")
    done = bsfind("run", *model, *LAYER, *FP32)
    assert done.returncode == 4
    assert "Train with" not in done.stdout
    assert re.search(
        r"fp32: the worker was killed by SIGKILL, .*; before that, 5 fits$", done.stdout, re.M
    )
    assert bsfind("run", *model, *LAYER, *FP32, "-q").stdout == ""
    report = document("run", *model, *LAYER, *FP32, code=4)
    assert report["recommendation"] is None
    assert report["results"][0]["recommended_batch_size"] is None

"""`--axis`: a size that is searched at a fixed batch size, predicted."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.processes import MODELS, bsfind, document, screen_and_report
from tests.exhaustive import exhaustive

import bsfind as api

pytestmark = pytest.mark.slow

AXES = f"{MODELS}/axes.py"
FP32 = ("--precision", "fp32", "--gpu", "1GiB")
IMAGES = (f"{AXES}:ConvNet", "--input-shape", "3,S,S", "--axis", "S", "--batch-size", "8", *FP32)
IDS = ("--input", "ids=L:int64:0..500", "--axis", "L", "--batch-size", "4")
TOKENS = (f"{AXES}:Decoder", *IDS, *FP32)


def check(axis: tuple[str, ...], name: str, size: int, batch_size: int, code: int = 0) -> Any:
    """Return the only trial of a `check` of the same model, with a number in place of the name."""
    target, option, shape, *_ = axis
    found = ("check", target, option, shape.replace(name, str(size)), "-b", str(batch_size), *FP32)
    return document(*found, code=code)["results"][0]["trials"][0]


@pytest.mark.parametrize(
    ("asked", "name", "samples"), [(IMAGES, "S", 8), exhaustive(TOKENS, "L", 4)]
)
def test_the_largest_size_is_found_exactly(asked: tuple[str, ...], name: str, samples: int) -> None:
    report = document("run", *asked)
    (result,) = report["results"]
    assert report["workload"]["axis"] == {"name": name, "batch_size": samples}
    largest, chosen = result["max_axis_size"], result["recommended_axis_size"]
    assert result["is_maximum_proven"]
    assert result["smallest_failed_axis_size"] == largest + 1
    assert 100 < chosen <= largest
    assert result["max_batch_size"] == result["recommended_batch_size"] == samples
    assert {trial["batch_size"] for trial in result["trials"]} == {samples}
    assert report["recommendation"]["batch_size"] == samples
    assert report["recommendation"]["axis_size"] == chosen
    assert check(asked, name, largest, samples)["status"] == "ok"
    assert check(asked, name, largest + 1, samples, code=1)["status"] == "oom"
    assert (
        check(asked, name, chosen, samples)["peak_allocated_bytes"]
        == (result["peak_allocated_bytes"])
    )


def test_every_screen_says_what_the_number_is(tmp_path: Path) -> None:
    files = [tmp_path / f"report.{ending}" for ending in ("md", "csv", "json")]
    exports = [argument for file in files for argument in ("--export", str(file))]
    done, report = screen_and_report("run", *TOKENS, "--plot", "-v", *exports)
    size = report["recommendation"]["axis_size"]
    assert f"Train with L up to {size:,} at batch size 4 in fp32: " in done.stdout
    assert "max L" in done.stdout
    assert "Peak reserved against L" in done.stdout
    assert "fp32  L 128: fits" in done.stderr
    said = (done.stdout + done.stderr).replace("batch size 4", "").replace("--batch-size", "")
    assert "batch" not in said
    assert f"L up to {size:,} at batch size 4" in files[0].read_text()
    assert files[1].read_text().startswith("precision,remedy,seq_len,weights_dtype,axis_size,")
    assert json.loads(files[2].read_text())["recommendation"]["axis_size"] == size
    assert bsfind("diff", files[2], files[2]).returncode == 0
    assert bsfind("run", *TOKENS, "-q").stdout == f"{size}\n"


def test_the_command_lines_of_the_report_ask_for_the_same() -> None:
    report = document("run", *IMAGES)
    again = document(*shlex.split(report["reproduce"])[1:])
    assert again["results"] == report["results"]
    asked = shlex.split(report["reproduce"])
    assert {"--axis", "S", "--batch-size", "8"} <= set(asked)
    checked = document(*shlex.split(report["recommendation"]["check"])[1:])
    assert checked["workload"]["inputs"][0]["shape"] == [
        3,
        *[report["recommendation"]["axis_size"]] * 2,
    ]


def test_the_limits_of_a_search_are_those_of_the_axis() -> None:
    done = bsfind("run", *TOKENS, "--max-size", "300", "--multiple-of", "64", "--fail-under", "300")
    assert done.returncode == 1
    assert "the recommended L, 256, is below `--fail-under 300`" in done.stderr
    assert "256 fits, the largest that was allowed (`--max-size`)" in done.stdout
    done = bsfind("run", *TOKENS, "--min-size", "100000")
    assert done.returncode == 1
    assert "a smaller L may fit: `--min-size 50000`" in done.stdout
    assert "fewer samples need less memory: `--batch-size 2`" in done.stdout


def test_the_most_that_a_model_takes_is_told_as_its_limit() -> None:
    asked = (f"{AXES}:Decoder", "--model-arg", "limit=300", *IDS, *FP32)
    done, report = screen_and_report("run", *asked)
    (result,) = report["results"]
    assert result["max_axis_size"] == result["recommended_axis_size"] == 300
    assert len(result["trials"]) <= 6
    assert result["refused_sizes"]["axis_sizes"][0] == 301
    assert "300 fits, 301 is refused." in done.stdout


def test_sizes_of_one_form_are_searched_among_these() -> None:
    asked = (f"{AXES}:Patches", *IMAGES[1:])
    (result,) = document("run", *asked)["results"]
    assert result["max_axis_size"] > 1000
    assert result["refused_sizes"]["multiple_of"] == 16


def test_the_length_of_a_batch_function() -> None:
    asked = ("--axis", "seq-len", "--batch-size", "4", *FP32)
    report = document("run", f"{AXES}:Decoder", "--batch-fn", f"{AXES}:tokens", *asked)
    named = document("run", *TOKENS)
    assert report["recommendation"]["axis_size"] == named["recommendation"]["axis_size"]
    assert "--seq-len" in report["recommendation"]["check"]
    done = bsfind("run", f"{AXES}:Decoder", "--batch-fn", f"{AXES}:few_tokens", *asked)
    assert done.returncode == 4
    assert "ignores the batch size: 4 samples were asked for" in done.stderr


def test_the_same_from_python() -> None:
    inputs = {"ids": "L:int64:0..500"}
    options: dict[str, Any] = {"axis": "L", "batch_size": 4, "precision": "fp32", "gpu": "1GiB"}
    report = api.find(f"{AXES}:Decoder", inputs, max_size=500, **options)
    assert (report.batch_size, report.axis_size) == (4, 500)
    with pytest.raises(api.UsageError, match="goes with `axis`"):
        api.find(f"{AXES}:Decoder", {"ids": "8:int64"}, batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--input", "ids=L:int64"), "`L` in `ids=L:int64:0..2` is not a number"),
        (("--input", "ids=L:int64", "--axis", "L"), "requires `--batch-size`"),
        (("--input", "ids=8:int64", "--batch-size", "4"), "`--batch-size` is what `run` searches"),
        (("--input", "ids=8:int64", "--min-size", "4"), "`--min-size` is for `--axis`"),
        (("--input", "ids=8", "--axis", "M", "-b", "4"), "no shape has a dimension of this name"),
        (("--input", "ids=8", "--axis", "seq-len", "-b", "4"), "is for inputs that follow"),
        (("--seq-len", "8", "--axis", "seq-len", "-b", "4"), "exclude each other"),
        (("--seq-len", "8,9", "--axis", "image-size", "-b", "4"), "takes one length"),
        ((*IDS, "--max-batch-size", "9"), "`--max-batch-size` has no meaning with `--axis`"),
        ((*IDS, "--objective", "fastest"), "`--objective` has no meaning with `--axis`"),
        ((*IDS, "--global-batch", "9"), "`--global-batch` has no meaning with `--axis`"),
        ((*IDS, "--min-size", "9", "--max-size", "8"), "`--min-size 9` is above `--max-size 8`"),
        (("--axis", "a-b", "-b", "4"), "is not a name of a dimension"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = bsfind("run", f"{AXES}:Decoder", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_model_without_such_inputs_is_refused() -> None:
    asked = ("--axis", "image-size", "--batch-size", "4", *FP32)
    target = ("transformers:TextForCausalLM", "--app-dir", f"{MODELS}/libraries")
    done = bsfind("run", *target, *asked)
    assert done.returncode == 2
    assert "`--axis image-size` has no meaning: bsfind makes no images" in done.stderr


def test_the_most_tokens_of_a_configuration_are_the_limit() -> None:
    asked = ("--axis", "seq-len", "--batch-size", "4", "--multiple-of", "8", *FP32)
    target = ("transformers:TextForCausalLM", "--app-dir", f"{MODELS}/libraries")
    limit = ("--model-arg", "max_position_embeddings=204")
    done, report = screen_and_report("run", *target, *limit, *asked)
    (result,) = report["results"]
    assert result["max_axis_size"] == result["recommended_axis_size"] == 200
    made = {made["what"]: made["value"] for made in report["workload"]["assumptions"]}
    assert made["largest seq-len"] == "204"
    assert "input_ids=seq-len:int64" in made["inputs"]
    assert report["workload"]["inputs"] == []
    assert "--seq-len 200" in report["recommendation"]["check"]
    assert "200 fits, the largest that the model takes." in done.stdout

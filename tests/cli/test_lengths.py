"""Several lengths of sequences: a row each, and the answer for the longest."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.processes import MODELS, bsfind, document, screen_and_report

import bsfind as library

pytestmark = pytest.mark.slow

TARGET = "transformers:TextForCausalLM"
FOLDER = f"{MODELS}/libraries"
ASKED = (TARGET, "--app-dir", FOLDER, "--gpu", "1GiB")


def same(result: dict[str, Any], alone: dict[str, Any]) -> bool:
    """Whether two results differ in nothing but the length that one of them names."""
    return {**result, "seq_len": None} == {**alone, "seq_len": None}


def test_each_length_has_the_result_that_it_has_alone(tmp_path: Path) -> None:
    exported = tmp_path / "trials.csv"
    found = document("run", *ASKED, "--seq-len", "128,512,32", "--export", str(exported))
    rows = [(result["seq_len"], result["precision"]) for result in found["results"]]
    assert rows == [(n, p) for n in (128, 512, 32) for p in ("fp32", "amp-bf16")]
    sizes = {row: r["max_batch_size"] for row, r in zip(rows, found["results"], strict=True)}
    assert sizes[32, "fp32"] > 3 * sizes[128, "fp32"] > 9 * sizes[512, "fp32"] > 9
    alone = document("run", *ASKED, "--seq-len", "128")
    assert all(map(same, found["results"][:2], alone["results"]))
    assert [result["seq_len"] for result in alone["results"]] == [None, None]

    assert found["search"]["seq_lens"] == [128, 512, 32]
    assert found["workload"]["seq_len"] is None
    recommended = found["recommendation"]
    assert recommended["seq_len"] == 512
    best = max(r["recommended_batch_size"] for r in found["results"] if r["seq_len"] == 512)
    assert recommended["batch_size"] == best
    assumed = {made["what"]: made["value"] for made in found["workload"]["assumptions"]}
    assert "input_ids=512:int64" in assumed["inputs at 512 tokens"]

    assert "--seq-len 128,512,32" in found["reproduce"]
    check = shlex.split(recommended["check"])[1:]
    assert check[check.index("--seq-len") + 1] == "512"
    (checked,) = document(*check)["results"]
    assert checked["max_batch_size"] == best

    written = csv.DictReader(io.StringIO(exported.read_text()))
    chosen = {(int(r["seq_len"]), r["precision"]) for r in written if r["is_recommended"] == "1"}
    assert chosen == set(rows)


def test_the_screen_and_the_number_are_of_the_longest() -> None:
    asked = (*ASKED, "--seq-len", "128,512", "--precision", "amp")
    screen, report = screen_and_report("run", *asked)
    short, long = (
        line.split() for line in screen.stdout.splitlines() if line.startswith("amp-bf16")
    )
    assert (short[1], long[1]) == ("128", "512")
    number = str(report["recommendation"]["batch_size"])
    below = bsfind("run", *asked, "-q", "--fail-under", str(int(number) + 1))
    assert below.returncode == 1
    assert below.stdout.strip() == number
    assert f"batch size {number} is for amp-bf16 at 512 tokens" in below.stderr
    told = " ".join(screen.stdout.split())
    assert f"Train with batch size {number} in amp-bf16 at 512 tokens: " in told
    assert f"At 128 tokens: batch size {short[3]} in amp-bf16." in told


def test_an_answer_for_shorter_sequences_is_none_for_the_longest() -> None:
    asked = (*ASKED, "--seq-len", "32,4096", "--precision", "fp32", "--memory-limit", "24MiB")
    done = bsfind("run", *asked)
    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    assert "Train with" not in told
    assert "At 32 tokens: batch size " in told
    assert "fp32 at 4,096 tokens: batch size 1 does not run" in told
    checked = bsfind("check", *asked, "-b", "1")
    assert checked.returncode == 1
    lines = checked.stdout.splitlines()
    assert any(line.startswith("fp32 at 32 tokens     batch size 1 fits") for line in lines)
    assert any(line.startswith("fp32 at 4,096 tokens  batch size 1 does not fit") for line in lines)


def test_comparisons_and_differences_know_the_length(tmp_path: Path) -> None:
    asked = (*ASKED, "--precision", "fp32")
    files = []
    for lengths, compared in (("64,128", ("--compare", "sgd")), ("128,256", ())):
        file = tmp_path / f"{lengths}.json"
        done = bsfind("run", *asked, "--seq-len", lengths, *compared, "--export", file)
        assert done.returncode == 0, done.stderr
        files.append(file)
    found = json.loads(files[0].read_text())
    rows = [(result["seq_len"], result["remedy"]) for result in found["results"]]
    assert rows == [(64, None), (128, None), (128, "sgd")]
    difference = bsfind("diff", *files)
    assert difference.returncode == 0, difference.stderr
    assert "fp32 at 128 tokens" in difference.stdout
    assert "fp32 at 64 tokens is not in the new report" in " ".join(difference.stderr.split())


def test_python_takes_several_lengths() -> None:
    tried: set[str] = set()
    report = library.find(
        TARGET,
        app_dir=FOLDER,
        gpu="1GiB",
        precision="fp32",
        seq_len=(64, 128),
        on_trial=lambda name, _: tried.add(name),
    )
    assert report.recommendation is not None
    sizes = {result.seq_len: result.recommended_batch_size for result in report.results}
    assert set(sizes) == {64, 128}
    assert report.batch_size == sizes[128]
    assert tried == {"fp32 at 64 tokens", "fp32 at 128 tokens"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--seq-len", "128,x"), "`x` is not an integer"),
        (("run", "--seq-len", ""), "`` is not an integer"),
        (("run", "--seq-len", "64,9000"), "`--seq-len 9000` is more than the 4096 tokens"),
        (("inspect", "-b", "1", "--seq-len", "64,128"), "`bsfind inspect` takes one `--seq-len`"),
    ],
)
def test_lengths_that_cannot_be(arguments: tuple[str, ...], told: str) -> None:
    done = bsfind(arguments[0], *ASKED, *arguments[1:])
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())

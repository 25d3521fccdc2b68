"""`bsfind run` does its main job: a batch size that runs, beside one that does not."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.gpu.gpu import LIMIT, MODELS, Gpu
from tests.gpu.reports import check_schema

IMAGES = ("--input-shape", "3,32,32")
TOKENS = ("--input", "input_ids=64:int64:0..1000", "--input", "labels=:int64:0..2")
GIB = 1 << 30


def test_report_of_two_precisions(gpu: Gpu) -> None:
    files = [f"report.{ending}" for ending in ("csv", "json", "md")]
    exports = [argument for file in files for argument in ("--export", file)]
    done = gpu.run("well_behaved.py:ConvNet", *IMAGES, *exports)
    assert done.code == 0, done.err
    report = done.report
    check_schema(report)
    assert sorted(path.name for path in gpu.folder.iterdir()) == files
    csv, exported, table = (Path(gpu.folder, file).read_text() for file in files)
    assert json.loads(exported)["results"] == report["results"]
    assert "| fp32 |" in table
    trials = [trial for r in report["results"] for trial in r["trials"] + r["timings"]]
    assert len(csv.splitlines()) == 1 + len(trials)
    assert report["status"] == "complete"
    assert report["simulated"] is False
    assert next(result["precision"] for result in report["results"]) == "fp32"
    for result in report["results"]:
        ran = {t["batch_size"]: t for t in result["trials"] if t["status"] == "ok"}
        assert result["status"] == "ok"
        assert result["max_batch_size"] == max(ran)
        assert result["is_maximum_proven"]
        gap = result["smallest_failed_batch_size"] - result["max_batch_size"]
        assert 1 <= gap <= max(1, 0.005 * result["max_batch_size"])
        recommended = ran[result["recommended_batch_size"]]
        assert recommended["peak_reserved_bytes"] <= report["device"]["budget_bytes"]
        assert result["peak_reserved_bytes"] == recommended["peak_reserved_bytes"]
        assert result["verified"]
        assert result["confirmation"]["batch_size"] == result["recommended_batch_size"]
    assert report["recommendation"]["batch_size"] in {
        result["recommended_batch_size"] for result in report["results"]
    }


def test_the_search_begins_at_what_was_predicted(fake_gpu: Gpu) -> None:
    """Of a card that the catalogue knows: two trials beside the prediction, and the confirmation."""
    done = fake_gpu.run("well_behaved.py:Classifier", *TOKENS)
    assert done.code == 0, done.err
    for result in done.report["results"]:
        predicted = result["predicted"]
        assert len(result["trials"]) <= 3
        assert result["max_batch_size"] <= predicted["max_batch_size"]
        assert predicted["max_batch_size"] < result["smallest_failed_batch_size"]
        if result["recommended_batch_size"] == predicted["recommended_batch_size"]:
            assert result["peak_allocated_bytes"] == predicted["peak_allocated_bytes"]
            assert result["peak_reserved_bytes"] == predicted["peak_reserved_bytes"]


def test_a_card_that_nobody_knows_is_searched_all_the_same(fake_gpu: Gpu) -> None:
    done = fake_gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, "--precision", "fp32"),
        variables={"FAKE_GPU_NAME": "NVIDIA Unheard Of"},
    )
    assert done.code == 0, done.err
    assert done.only["predicted"] is None
    assert done.only["is_maximum_proven"]


def test_the_number_alone(gpu: Gpu) -> None:
    done = gpu.bsfind(
        *("run", f"{MODELS}/well_behaved.py:ConvNet", *IMAGES, "--memory-limit", LIMIT, "-q"),
    )
    assert done.code == 0, done.err
    assert int(done.out) > 5
    assert done.out == f"{int(done.out)}\n"
    assert f"batch size {int(done.out)} is for" in done.err


def test_the_table(gpu: Gpu) -> None:
    done = gpu.bsfind(
        *("run", f"{MODELS}/well_behaved.py:ConvNet", *IMAGES, "--memory-limit", LIMIT),
        *("--precision", "fp32", "-v"),
    )
    assert done.code == 0, done.err
    assert "Train with batch size" in done.out
    assert "ran out of memory" in done.out
    assert "out of memory (CUDA out of memory. Tried to allocate" in done.err
    assert "CUDACachingAllocator.cpp" not in done.err


def test_headroom_zero_recommends_the_maximum(gpu: Gpu) -> None:
    result = gpu.run(
        "well_behaved.py:ConvNet", *IMAGES, "--headroom", "0", "--precision", "amp"
    ).only
    assert result["recommended_batch_size"] == result["max_batch_size"]
    assert result["verified"]


def test_multiples(gpu: Gpu) -> None:
    result = gpu.run(
        "well_behaved.py:ConvNet", *IMAGES, "--multiple-of", "64", "--precision", "fp32"
    ).only
    assert result["recommended_batch_size"] % 64 == 0
    assert result["recommended_batch_size"] > 0


def test_limits_of_the_search(gpu: Gpu) -> None:
    result = gpu.run(
        "well_behaved.py:ConvNet", *IMAGES, "--max-batch-size", "12", "--precision", "fp32"
    ).only
    assert result["max_batch_size"] == 12
    assert result["is_maximum_proven"]
    done = gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, "--precision", "fp32"),
        *("--min-batch-size", "100000000", "--max-batch-size", "100000000"),
    )
    assert done.code == 1
    assert done.only["status"] == "nothing_fits"
    assert [trial["batch_size"] for trial in done.only["trials"]] == [100_000_000]


def test_exact_search(gpu: Gpu) -> None:
    result = gpu.run(
        *("well_behaved.py:Blocks", "--input-shape", "64,256", "--tolerance", "0"),
        *("--precision", "fp32", "--headroom", "0"),
    ).only
    assert result["smallest_failed_batch_size"] == result["max_batch_size"] + 1


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("make_conv_net", (*IMAGES, "--model-arg", "width=8")),
        ("instance", IMAGES),
        ("Classifier", TOKENS),
        ("ConvNet", (*IMAGES, "--loss", "cross-entropy", "--optimizer", "sgd")),
        ("ConvNet", (*IMAGES, "--loss", "mse", "--optimizer", "RMSprop", "--channels-last")),
        ("ConvNet", (*IMAGES, "--loss", f"{MODELS}/well_behaved.py:sum_of_squares")),
        ("ConvNet", (*IMAGES, "--optimizer", f"{MODELS}/well_behaved.py:momentum")),
        ("ConvNet", (*IMAGES, "--optimizer", "sgd", "--optimizer-arg", "momentum=0.9")),
        ("ConvNet", ("--batch-fn", f"{MODELS}/well_behaved.py:batch")),
        ("ConvNet", (*IMAGES, "--step", f"{MODELS}/well_behaved.py:half_step")),
        ("ConvNet", (*IMAGES, "--mode", "infer")),
        ("ConvNet", (*IMAGES, "--grad-accum", "2")),
        ("Blocks", ("--input-shape", "64,256", "--grad-checkpoint")),
    ],
)
def test_workloads(gpu: Gpu, model: str, arguments: tuple[str, ...]) -> None:
    check(gpu, f"well_behaved.py:{model}", *arguments, "--precision", "fp32")


@pytest.mark.parametrize("precision", ["tf32", "amp-fp16", "amp-bf16", "bf16"])
def test_precisions(gpu: Gpu, precision: str) -> None:
    check(gpu, "well_behaved.py:Classifier", *TOKENS, "--precision", precision)


def check(gpu: Gpu, model: str, *arguments: str) -> None:
    """Try one batch size, which fits."""
    done = gpu.bsfind("check", f"{MODELS}/{model}", "-b", "8", "--json", *arguments)
    assert done.code == 0, done.err
    (trial,) = done.only["trials"]
    assert trial["status"] == "ok"
    assert trial["batch_size"] == 8
    assert trial["peak_allocated_bytes"] > 0


def test_a_batch_of_one_is_no_obstacle_for_batch_norm(gpu: Gpu) -> None:
    model = ("well_behaved.py:Normalised", "--input-shape", "16", "--precision", "fp32")
    done = gpu.run(*model, "--max-batch-size", "3")
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == 3
    done = gpu.run(*model, "--max-batch-size", "1")
    assert done.code == 1, done.err


def test_memory_that_grows_with_the_square_of_the_batch(gpu: Gpu) -> None:
    done = gpu.run("well_behaved.py:Pairwise", "--input-shape", "16,32", "--precision", "fp32")
    assert done.code == 0, done.err
    assert done.only["is_maximum_proven"]


def test_fastest(gpu: Gpu) -> None:
    done = gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, "--objective", "fastest", "--precision", "fp32"),
    )
    assert done.code == 0, done.err
    result = done.only
    assert result["recommended_batch_size"] <= result["max_batch_size"]
    assert result["confirmation"]["samples_per_s"] > 0


def test_check(gpu: Gpu) -> None:
    arguments = (f"{MODELS}/well_behaved.py:ConvNet", *IMAGES, "--memory-limit", LIMIT)
    fits = gpu.bsfind("check", *arguments, "--batch-size", "8")
    assert fits.code == 0, fits.err
    assert "batch size 8 fits" in fits.out
    too_large = gpu.bsfind("check", *arguments, "-b", "10000000", "--json")
    assert too_large.code == 1, too_large.err
    for result in too_large.report["results"]:
        assert [trial["status"] for trial in result["trials"]] == ["oom"]


def test_reproduce_line_runs(gpu: Gpu) -> None:
    options = ("--precision", "fp32", "--headroom", "0", "--max-batch-size", "8")
    first = gpu.run("well_behaved.py:ConvNet", *IMAGES, *options).report
    again = gpu.bsfind(*shlex.split(first["reproduce"])[1:], "--json")
    assert again.code == 0, again.err
    assert all(again.report[part] == first[part] for part in ("search", "workload", "reproduce"))


def test_a_reader_that_has_seen_enough(gpu: Gpu) -> None:
    arguments = (*IMAGES, "--max-batch-size", "6", "--precision", "fp32")
    process = gpu.start(["-m", "bsfind", "run", f"{MODELS}/well_behaved.py:ConvNet", *arguments])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.wait(timeout=120)
    assert process.returncode == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_expandable_segments(gpu: Gpu) -> None:
    done = gpu.run(
        *("well_behaved.py:ConvNet", *IMAGES, "--precision", "fp32"),
        variables={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    )
    assert done.code == 0, done.err
    assert done.only["is_maximum_proven"]
    assert "memory mapping failed" not in done.err
    assert done.report["environment"]["variables"] == {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"
    }


def test_the_search_ends_at_the_batch_that_is_delivered(fake_gpu: Gpu) -> None:
    how = (
        "deliveries.py:Net",
        "--batch-fn",
        f"{MODELS}/deliveries.py:loader",
        "--precision",
        "fp32",
    )
    done = fake_gpu.run(*how)
    assert done.code == 0, done.err
    assert done.only["max_batch_size"] == done.only["recommended_batch_size"] == 500
    assert done.only["confirmation"]["batch_size"] == 500
    assert "short_batch" in {warning["code"] for warning in done.report["warnings"]}


@pytest.mark.parametrize("where", ["attribute", "global"])
def test_a_trial_begins_with_the_state_of_a_fresh_model(fake_gpu: Gpu, where: str) -> None:
    """The kernels of the fake GPU compute nothing: a counter on it stays as it is."""
    done = fake_gpu.run(
        *("stateful.py:Seventh", "--model-arg", f"where={where}", "--input-shape", "256"),
        *("--precision", "fp32", "--confirm-steps", "3"),
    )
    assert done.code == 0, done.err
    assert "steps_differ" not in {warning["code"] for warning in done.report["warnings"]}
    for trial in done.only["trials"]:
        assert len(set(trial["peaks_by_step"][1:])) <= 1


def test_what_the_end_of_an_epoch_frees_is_no_leak(gpu: Gpu) -> None:
    libraries = str(MODELS / "libraries")
    options = ("--precision", "fp32", "--max-batch-size", "64", "--app-dir", libraries)
    done = gpu.run("libraries/collecting.py:FreedInTheEnd", "--input-shape", "16", *options)
    assert done.code == 0, done.err
    (warning,) = [w for w in done.report["warnings"] if w["code"] == "grows_in_epoch"]
    assert "an epoch of 1,000 batches takes 381.5 MiB" in warning["message"]
    assert done.only["recommended_batch_size"] == 64

"""Predictions through real processes: a GPU that need not be there, on any build of torch."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.cli.processes import MODELS, ROOT, bsfind, document, screen_and_report

from bsfind.simulation.gpus.catalogue import find_gpu

pytest.importorskip("pty", reason="terminals are tested where there are any")

import pty

from tests.cli.terminal import all_that_was_shown  # (after the check for pty)

NET = f"{MODELS}/well_behaved.py:ConvNet"
IMAGES = ("--input-shape", "3,32,32")
GIB = 1 << 30


# ------------------------------------------------------------------------------------ libraries


@pytest.mark.slow
def test_the_inputs_of_a_library_are_written_as_options() -> None:
    asked = ("--app-dir", f"{MODELS}/libraries", "--gpu", "1GiB", "--precision", "fp32")
    target = "transformers:TextForCausalLM"
    found = document("run", target, *asked, "--seq-len", "64")
    tensor = {"shape": [64], "dtype": "int64", "same_as": None, "constant": None}
    assert found["workload"]["inputs"] == [
        {"name": "input_ids", "low": 0, "high": 100, **tensor},
        {"name": "attention_mask", "low": 1, "high": 2, **tensor},
    ]
    options = "--input input_ids=64:int64:0..100 --input attention_mask=64:int64:1..2"
    assumed = {made["what"]: made["value"] for made in found["workload"]["assumptions"]}
    assert assumed["inputs"] == options
    assert assumed["configuration"] == "the defaults of `TextConfig`"
    assert "from `labels` (N, 64)" in assumed["loss"]
    assert options in found["reproduce"]
    assert "--seq-len" not in found["reproduce"]
    again = document(*shlex.split(found["reproduce"])[1:])
    assert again["results"] == found["results"]
    assert again["reproduce"] == found["reproduce"]
    assert options in found["recommendation"]["check"]


@pytest.mark.slow
def test_inputs_that_are_no_tensors_of_their_own() -> None:
    given = ("ids=16:int64:0..50", "labels=@ids", "return_loss=true", "scale==3", "mode==sum")
    settings = ("--gpu", "1GiB", "--precision", "fp32", "-b", "1024")

    def checked(*inputs: str) -> tuple[list[Any], int]:
        options = [word for text in inputs for word in ("--input", text)]
        found = document("check", f"{MODELS}/called.py:Named", *options, *settings)
        described = [(one["same_as"], one["constant"]) for one in found["workload"]["inputs"]]
        assert all(text in found["reproduce"] for text in ("labels=", "return_loss=True"))
        return described, found["results"][0]["trials"][0]["peak_allocated_bytes"]

    same, peak = checked(*given)
    own, peak_of_own = checked(*(text.replace("@ids", "16:int64:0..50") for text in given))
    assert same == [(None, None), ("ids", None), (None, "True"), (None, "3"), (None, "sum")]
    assert own[1] == (None, None)
    assert peak_of_own - peak == 16 * 8 * 1024


def test_a_model_that_takes_one_dict() -> None:
    inputs = ("--input", "image=3,8,8", "--input", "label=:int64:0..10")
    settings = ("--gpu", "1GiB", "-b", "64", "--precision", "fp32")
    found = document("check", f"{MODELS}/called.py:OneDict", *inputs, *settings)
    assert found["workload"]["assumptions"][0]["value"] == "the model's own loss"


def test_a_batch_function_gets_the_arguments_that_it_has() -> None:
    asked = ("check", f"{MODELS}/called.py:OneDict", "-b", "2", "--gpu", "1GiB")
    done = bsfind(*asked, "--batch-fn", "bsfind.batches:graphs", "--image-size", "64")
    assert done.returncode == 2
    assert "`--image-size`: `bsfind.batches:graphs` has no argument `image_size`" in done.stderr
    assert "it has `nodes`, `edges`" in done.stderr


def test_inputs_that_are_not_known_are_asked_for() -> None:
    done = bsfind("check", NET, "--gpu", "1GiB", "--batch-size", "2")
    assert done.returncode == 2
    assert "error: the inputs of `ConvNet` are not known" in done.stderr
    assert "pass `--input-shape 3,224,224`" in done.stderr


# --------------------------------------------------------------------------------------- check


def test_check_says_what_fits_and_what_is_left() -> None:
    done = bsfind("check", NET, *IMAGES, "--gpu", "rtx-4090", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert "simulated NVIDIA GeForce RTX 4090" in done.stdout
    assert re.search(r"context [\d.]+ MiB \(modelled\) · torch \d", done.stdout)
    assert re.search(r"fp32 +batch size 8 fits: peak reserved .* GiB left", done.stdout)
    assert re.search(r"amp-bf16 +batch size 8 fits", done.stdout)
    assert "Predicted, not run." in done.stdout
    assert "samples/s" not in done.stdout


@pytest.mark.slow
def test_what_is_assumed_is_named() -> None:
    arguments = ("check", NET, *IMAGES, "--gpu", "rtx-4090", "--batch-size", "8")
    done = bsfind(*arguments, "--precision", "fp32")
    first, _, assumed, *_ = done.stdout.splitlines()
    assert " · AdamW · cross-entropy on the output (N, 10) · training · " in first
    assert assumed == "assumed: loss, optimizer, dtype of input 1 (float32)"
    report = document(*arguments, "--precision", "fp32", "--loss", "mse", "--optimizer", "adamw")
    (only,) = report["workload"]["assumptions"]
    assert (only["what"], only["value"]) == ("dtype of input 1", "float32")


def test_check_that_does_not_fit() -> None:
    settings = ("--gpu", "2GiB", "--precision", "fp32")
    done = bsfind("check", NET, *IMAGES, *settings, "--batch-size", "100000")
    assert done.returncode == 1, done.stderr
    assert "batch size 100000 does not fit" in done.stdout


def test_check_as_json() -> None:
    report = document("check", NET, *IMAGES, "--gpu", "rtx-4090", "--batch-size", "8")
    assert report["simulated"] is True
    device = report["device"]
    assert device["kind"] == "simulated"
    assert device["name"] == "NVIDIA GeForce RTX 4090"
    assert device["compute_capability"] == "8.9"
    assert device["total_bytes"] == find_gpu("rtx-4090").total_bytes
    assert device["context_source"] == "modelled"
    assert device["free_bytes"] == device["total_bytes"] - device["context_bytes"]
    assert report["prediction"]["model_kind"] == "convolutional"
    assert "cuDNN" in report["prediction"]["convolution_workspaces"]
    assert report["prediction"]["allocator"] == {}
    assert report["search"]["gpu"] == "rtx-4090"
    for result in report["results"]:
        (trial,) = result["trials"]
        assert (trial["batch_size"], trial["status"]) == (8, "ok")
        # They are alike in the first precision, and so they are in the others.
        traced = 20 if result is report["results"][0] else 3
        assert (trial["steps"], trial["traced_steps"]) == (20, traced)
        assert 0 < trial["peak_allocated_bytes"] <= trial["peak_reserved_bytes"]
        assert trial["step_time_s"] is None
        assert trial["samples_per_s"] is None
        assert result["verified"] is False


@pytest.mark.one_torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape", "kind", "sentence"),
    [
        ("Fused", "16,12", "attention", "Error bound for attention models: peak allocated"),
        ("Convolutions", "3,12,12", "convolutional", "Error bound for convolutional models"),
        ("Recurrent", "16,12", "recurrent", "Error bound: none for recurrent layers"),
    ],
)
def test_the_error_bound_is_that_of_the_operators(
    model: str, shape: str, kind: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    names = (f"tests/models/operators.py:{model}", "--input-shape", shape, "--gpu", "rtx-4090")
    options = ("--batch-size", "4", "--precision", "fp32", "--export", str(file))
    done = bsfind("check", *names, *options)
    assert done.returncode == 0, done.stderr
    assert sentence in done.stdout
    prediction = json.loads(file.read_text())["prediction"]
    assert prediction["model_kind"] == kind
    assert (prediction["accuracy"] is None) == (kind == "recurrent")
    assert (prediction["no_accuracy_because"] is None) == (kind != "recurrent")
    assert (prediction["convolution_workspaces"] is None) == (kind == "attention")


@pytest.mark.one_torch
@pytest.mark.slow
def test_another_release_of_torch() -> None:
    """The report says which one is predicted, which one traces, and that it has no error bound."""
    asked = ("check", NET, *IMAGES, "--gpu", "t4", "--batch-size", "8", "--precision", "fp32")
    done, report = screen_and_report(*asked, "--torch-version", "2.9")
    prediction, device = report["prediction"], report["device"]
    assert (prediction["torch_version"], device["torch_version"]) == ("2.9", "2.9")
    assert device["cuda_version"] == "12.8"
    assert device["traced_by"] == report["environment"]["torch"]
    assert device["traced_by"].startswith("2.13")
    assert prediction["accuracy"] is None
    assert "--torch-version 2.9" in report["reproduce"]
    assert [w["code"] for w in report["warnings"]].count("torch_version") == 1
    assert f"torch (2.9, for what {device['traced_by']} traces)" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_release_of_torch_that_was_not_compared() -> None:
    asked = ("check", NET, *IMAGES, "--gpu", "t4", "--batch-size", "8")
    done = bsfind(*asked, "--torch-version", "1.13")
    assert done.returncode == 2
    assert "what it predicts for torch 1.13 was not compared" in " ".join(done.stderr.split())
    assert "'torch==1.13.*'" in done.stderr


@pytest.mark.slow
def test_an_old_card_has_no_bfloat16() -> None:
    report = document("check", NET, *IMAGES, "--gpu", "t4", "--batch-size", "8")
    assert [result["precision"] for result in report["results"]] == ["fp32", "amp-fp16"]


# ----------------------------------------------------------------------------------------- run


@pytest.mark.slow
def test_the_largest_and_what_leaves_the_headroom() -> None:
    report = document("run", NET, *IMAGES, "--gpu", "2GiB", "--context-memory", "100MiB")
    assert report["status"] == "complete"
    device = report["device"]
    assert (device["context_bytes"], device["context_source"]) == (100 << 20, "given")
    assert device["capacity_bytes"] == 2 * GIB - (100 << 20)
    for result in report["results"]:
        assert result["is_maximum_proven"]
        assert result["smallest_failed_batch_size"] == result["max_batch_size"] + 1
        assert 0 < result["recommended_batch_size"] < result["max_batch_size"]
        assert result["peak_reserved_bytes"] <= device["budget_bytes"]
        assert result["verified"] is False
        assert result["confirmation"] is None
    recommendation = report["recommendation"]
    assert "per second" not in recommendation["reason"]


@pytest.mark.slow
def test_each_size_is_what_a_check_says() -> None:
    common = (NET, *IMAGES, "--gpu", "2GiB", "--precision", "fp32")
    (result,) = document("run", *common)["results"]
    largest = result["max_batch_size"]
    document("check", *common, "--batch-size", str(largest))
    document("check", *common, "--batch-size", str(largest + 1), code=1)


def test_the_table() -> None:
    done = bsfind("run", NET, *IMAGES, "--gpu", "a10g", "--memory-limit", "1GiB")
    assert done.returncode == 0, done.stderr
    assert "simulated NVIDIA A10G" in done.stdout.splitlines()[0]
    assert "limited to 1.0 GiB" in done.stdout
    shown = " ".join(done.stdout.split())
    assert "Predicted, not run: 3 steps were traced and the last was repeated, up to 20" in shown
    assert "(all of them were traced in fp32), within the budget." in shown
    is_measured = version("torch").startswith("2.13")
    assert ("Error bound for convolutional models:" in done.stdout) == is_measured
    assert ("Error bound: not measured for torch" in done.stdout) != is_measured
    assert "Confirmed" not in done.stdout
    assert "samples/s" not in done.stdout


def test_the_number_alone() -> None:
    done = bsfind("run", NET, *IMAGES, "--gpu", "2GiB", "--precision", "fp32", "-q")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\n", done.stdout)


@pytest.mark.slow
def test_what_reproduces_it_asks_for_the_same() -> None:
    report = document("run", NET, *IMAGES, "--gpu", "RTX 3090", "--memory-limit", "1GiB")
    assert report["reproduce"].endswith("--gpu rtx-3090 --memory-limit 1GiB")


@pytest.mark.slow
def test_the_largest_is_below_the_smallest_that_is_useful() -> None:
    settings = ("--gpu", "1GiB", "--context-memory", "0", "--precision", "fp32")
    done = bsfind("run", NET, *IMAGES, *settings, "--min-batch-size", "99999")
    assert done.returncode == 1, done.stderr


@pytest.mark.slow
def test_the_options_of_the_allocator_are_followed() -> None:
    common = ("check", NET, *IMAGES, "--gpu", "24GiB", "-b", "100", "--precision", "fp32")
    plain = document(*common)
    other = document(*common, PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True")
    assert other["prediction"]["allocator"] == {"expandable_segments": True}
    reserved = [report["results"][0]["trials"][0] for report in (plain, other)]
    assert reserved[0]["peak_reserved_bytes"] != reserved[1]["peak_reserved_bytes"]
    # Blocks of expandable segments are always split: what is left over is never allocated along.
    assert reserved[0]["peak_allocated_bytes"] >= reserved[1]["peak_allocated_bytes"]


def test_options_of_the_allocator_that_are_wrong() -> None:
    done = bsfind(
        "check",
        NET,
        *IMAGES,
        *("--gpu", "24GiB", "-b", "8"),
        PYTORCH_CUDA_ALLOC_CONF="roundup_power2_divisions:3",
    )
    assert done.returncode == 2
    assert "roundup_power2_divisions" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_users_failures_are_the_users() -> None:
    done = bsfind("check", f"{MODELS}/well_behaved.py:Netz", *IMAGES, "--gpu", "24GiB", "-b", "8")
    assert done.returncode == 4
    assert "Netz" in done.stderr
    fp32 = ("--precision", "fp32")
    done = bsfind("check", NET, "--input-shape", "4,32,32", "--gpu", "24GiB", "-b", "8", *fp32)
    assert done.returncode == 4
    assert "4,32,32" in done.stderr or "[8, 4, 32, 32]" in done.stderr


@pytest.mark.slow
def test_an_instance_is_predicted_in_every_precision() -> None:
    """One process serves all precisions: none may leave its dtypes in the user's own object."""
    target = f"{MODELS}/well_behaved.py:instance"
    common = ("check", target, *IMAGES, "--gpu", "24GiB", "-b", "8")
    together = document(*common, "--precision", "bf16,fp32")
    alone = document(*common, "--precision", "fp32")
    (later,), (first,) = (r["trials"] for r in (together["results"][1], alone["results"][0]))
    assert (first["traced_steps"], later["traced_steps"]) == (20, 3)
    assert {**later, "traced_steps": 20} == first


# ----------------------------------------------------------------------------- without naming one


def at_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Run bsfind with a terminal as its stdout; returns its exit code, stdout and stderr."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bsfind", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120", "NO_COLOR": "1"},
    )
    os.close(follower)
    shown = all_that_was_shown(leader)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r\n", "\n")
    return process.wait(timeout=60), plain, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("run", "--memory-limit", "1GiB"), ("check", "--batch-size", "8")]
)
def test_at_a_terminal_a_known_gpu_stands_in(command: tuple[str, ...]) -> None:
    name, *options = command
    code, out, err = at_a_terminal(name, NET, *IMAGES, *options, "--precision", "fp32")
    assert code == 0, err
    assert err.splitlines()[0].startswith(
        "No usable GPU here: this predicts for the NVIDIA GeForce RTX 4090, and runs nothing."
    )
    assert "hint: `--gpu` names another one" in err
    title = " ".join(out.partition(" · torch ")[0].split())
    assert "simulated NVIDIA GeForce RTX 4090" in title


@pytest.mark.parametrize("options", [("-q",), ("--json",), ("--device", "cuda")])
def test_at_a_terminal_a_script_is_refused_all_the_same(options: tuple[str, ...]) -> None:
    code, _, err = at_a_terminal("run", NET, *IMAGES, *options)
    assert code == 3
    assert "no usable GPU was found" in err
    assert "`--gpu rtx-4090`" in err


# ------------------------------------------------------------------------------------------ env


def test_env_tells_whether_predictions_are_exact_with_this_torch() -> None:
    done = bsfind("env", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["simulator"].startswith(("exact: ", "coarse: "))


def test_gpus_says_what_they_are_for() -> None:
    done = bsfind("gpus")
    assert "`bsfind run … --gpu rtx-4090` predicts for one of the known GPUs" in done.stderr


# ------------------------------------------------------------------------------ random numbers


@pytest.mark.slow
def test_dropped_layers_have_one_answer_that_of_all_layers() -> None:
    """Half of the layers are dropped in each step; a run of hours meets a step that drops none."""
    command = ("run", "--input-shape", "32,64", "--gpu", "t4", "--precision", "fp32")
    target = f"{MODELS}/random_steps.py:layers"
    everything = document(*command, target)["recommendation"]["batch_size"]
    found = document(*command, target, "--model-arg", "keeps=python_own")
    assert found["recommendation"]["batch_size"] == everything
    assert "random_steps" in [warning["code"] for warning in found["warnings"]]
    assert "random numbers" in [made["what"] for made in found["workload"]["assumptions"]]


# ------------------------------------------------- models that are hard to build, or that read values


def test_a_layer_larger_than_the_host_does_not_fit_and_the_sum_is_told() -> None:
    wide = f"{MODELS}/built.py:Wide"
    done = bsfind("run", wide, "--input-shape", "80000", "--gpu", "8GiB", "--precision", "fp32")
    assert done.returncode == 1, done.stderr
    assert (
        "the model alone does not fit: parameters 23.8 GiB + gradients 23.8 GiB + optimizer state "
        "(AdamW) 47.7 GiB = 95.4 GiB, and the card has 7.6 GiB for it" in done.stdout
    )


def test_what_fits_without_its_gradients_only_has_its_sum_told_too() -> None:
    large = f"{MODELS}/traced.py:Huge"
    report = document(
        *("run", large, "--input-shape", "16384", "--gpu", "40GiB", "--optimizer", "sgd"),
        *("--precision", "fp32"),
        code=1,
    )
    message = report["results"][0]["message"]
    assert re.search(
        r"at any batch size: parameters 26\.0 GiB \+ gradients 26\.0 GiB = 52\.0 GiB", message
    )


@pytest.mark.one_torch  # no warning of another release
def test_tied_weights_stay_tied_when_the_constructor_moves_the_model() -> None:
    tied = f"{MODELS}/built.py:TiedAndMoved"
    tokens = ("--input-shape", "16:int64:0..1000", "--gpu", "t4", "--batch-size", "2")
    done = bsfind("inspect", tied, *tokens, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert "64.0 K parameters" in done.stdout
    assert done.stderr == ""


def test_a_build_in_the_hosts_memory_is_told() -> None:
    tied = f"{MODELS}/built.py:TiedAndMoved"
    tokens = ("--input-shape", "16:int64:0..1000", "--gpu", "t4", "--batch-size", "2")
    done = bsfind("check", tied, *tokens, "--precision", "fp32", "--model-arg", "how=values")
    assert done.returncode == 0, done.stderr
    assert "64.0 K parameters" in done.stdout
    assert "could not be built without memory for its weights" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_policy_is_predicted_and_a_branch_is_named() -> None:
    reads = f"{MODELS}/read_values.py:Reads"
    shape = ("--input-shape", "32", "--gpu", "t4", "--batch-size", "8", "--precision", "amp")
    done = bsfind("check", reads, *shape, "--model-arg", "function=normal")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = document("check", reads, *shape, "--model-arg", "function=branches")
    (warning,) = [w for w in report["warnings"] if w["code"] == "value_assumed"]
    assert "it is taken as True" in warning["message"]


LOWER = f"{MODELS}/lower_precision.py"
T4 = ("--gpu", "t4", "--precision", "fp32")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mlp", "mat1 and mat2 must have the same dtype, but got Float and BFloat16"),
        ("ForgottenScale", "but found at least two devices, cuda:0 and cpu!"),
    ],
)
def test_what_cuda_refuses_is_refused_in_its_words(model: str, message: str) -> None:
    ran = bsfind("check", f"{LOWER}:{model}", "--input-shape", "64", "-b", "8", *T4)
    assert ran.returncode == 4
    assert message in ran.stderr
    assert "meta" not in ran.stderr


@pytest.mark.slow
def test_weights_of_another_dtype_are_named_with_the_precision() -> None:
    arguments = ("check", f"{LOWER}:mlp", "-b", "8", "--input-shape", "64:bfloat16", *T4)
    done, report = screen_and_report(*arguments)
    assert report["results"][0]["weights_dtype"] == "bfloat16"
    assert "fp32, weights bfloat16" in done.stdout


# ------------------------------------------------------------------- weights and states of few bits


def of_bitsandbytes(target: str, *options: str) -> tuple[int, list[str]]:
    """Return the peak of a check, and the codes of its warnings."""
    asked = ("--app-dir", f"{MODELS}/libraries", "--gpu", "4GiB", "--precision", "fp32", "-b", "64")
    found = document(
        *("check", f"{MODELS}/quantised.py:{target}", *asked, "--input-shape", "2048"),
        *("--optimizer", f"{MODELS}/quantised.py:Optimizer", *options),
    )
    (trial,) = found["results"][0]["trials"]
    return trial["peak_allocated_bytes"], [warning["code"] for warning in found["warnings"]]


@pytest.mark.slow
def test_products_with_quantised_weights_take_the_whole_weight() -> None:
    peak, warnings = of_bitsandbytes("Net")
    assert peak == of_bitsandbytes("written")[0]
    assert "custom_operators" not in warnings


@pytest.mark.slow
def test_paged_states_are_not_on_the_gpu() -> None:
    peak, warnings = of_bitsandbytes("Net")
    other, others = of_bitsandbytes("Net", "--optimizer-arg", "paged=False")
    weight = 2048 * 2048 * 4
    assert 0 < other - peak <= weight + 4 * 2048
    assert "paged_memory" in warnings
    assert "paged_memory" not in others

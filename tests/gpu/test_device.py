"""The device as the report names it, and the memory that a trial leaves behind: none."""

from __future__ import annotations

import json
import textwrap

import pytest

from tests.exhaustive import exhaustive
from tests.gpu.gpu import MODELS, Gpu, Result

IMAGES = ("--input-shape", "3,32,32", "--precision", "fp32", "--max-batch-size", "6")
CHECK = (
    *("check", f"{MODELS}/well_behaved.py:ConvNet", "--input-shape", "3,32,32"),
    *("--batch-size", "8", "--precision", "fp32", "--json"),
)


def in_worker(gpu: Gpu, body: str) -> object:
    """Run `body` with an opened worker `w` and a loaded ConvNet; return what it puts in `answer`."""
    code = f"""
    import json
    from bsfind.inputs import parse_input_shape
    from bsfind.settings import DeviceChoice, Workload
    from bsfind.worker.client import Worker
    with Worker(lambda line: None) as w:
        device = w.open(DeviceChoice(memory_limit_bytes=1 << 30), 120)
        workload = Workload(
            target="{MODELS}/well_behaved.py:ConvNet", inputs=(parse_input_shape("3,64,64"),)
        )
        model = w.load(workload, "fp32", 120)
        {textwrap.indent(textwrap.dedent(body), " " * 8).strip()}
        print(json.dumps(answer))
    """
    done = gpu.python_code(textwrap.dedent(code))
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_batch_size_that_fits_before_an_oom_fits_after_it(gpu: Gpu) -> None:
    trials = in_worker(
        gpu,
        """
        def run(n):
            a = w.run_trial(n, 3, 120)
            return [a.trial.status, a.trial.peak_allocated_bytes, a.trial.peak_reserved_bytes, a.is_clean]
        n = 8
        while run(2 * n)[0] == "ok":
            n *= 2
        low, high = n, 2 * n
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if run(middle)[0] == "ok" else (low, middle)
        answer = [run(low), run(high), run(low), run(64 * high), run(low)]
        """,
    )
    assert isinstance(trials, list)
    first, failed, second, failed_by_far, third = trials
    assert first[0] == "ok"
    assert failed[0] == "oom"
    assert failed_by_far[0] == "oom"
    assert first == second == third
    assert all(trial[3] for trial in trials)


def test_what_a_trial_records(gpu: Gpu) -> None:
    answer = in_worker(
        gpu,
        """
        a = w.run_trial(32, 4, 120)
        answer = [vars(a.trial), a.recording.events, model.parameters]
        """,
    )
    assert isinstance(answer, list)
    trial, events, parameters = answer
    assert trial["status"] == "ok"
    assert trial["steps"] == 4
    assert trial["num_alloc_retries"] == 0
    assert 0 < trial["activation_bytes"] < trial["peak_allocated_bytes"]
    assert trial["peak_allocated_bytes"] <= trial["peak_reserved_bytes"]
    # Weights, their gradients and AdamW's two moments, four bytes each, are there between steps.
    assert trial["resident_bytes"] >= 4 * 4 * parameters
    assert trial["samples_per_s"] == pytest.approx(32 / trial["step_time_s"])
    assert 32 * 3 * 64 * 64 * 4 in events
    assert sum(event >= 0 for event in events) >= sum(event < 0 for event in events) > 100


@pytest.fixture(scope="module")
def found(is_fake: bool, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A search on the whole GPU, within the memory limit of the tests."""
    gpu = Gpu(is_fake=is_fake, folder=tmp_path_factory.mktemp("found"))
    return gpu.run("well_behaved.py:ConvNet", *IMAGES)


def test_the_memory_limit_is_the_capacity(found: Result) -> None:
    device = found.report["device"]
    assert device["capacity_bytes"] == 1 << 30
    assert device["budget_bytes"] == (1 << 30) - int(0.05 * (1 << 30))
    assert device["free_bytes"] <= device["total_bytes"]


def test_what_the_process_holds_outside_the_pool_is_measured(found: Result) -> None:
    report = found.report
    device = report["device"]
    assert device["context_source"] == "measured"
    assert 50 << 20 < device["context_bytes"] < 4 << 30
    assert device["context_bytes"] <= device["total_bytes"] - device["free_bytes"]
    assert report["prediction"] is None


def test_a_limit_above_the_card_is_refused(gpu: Gpu) -> None:
    done = gpu.run("well_behaved.py:ConvNet", *IMAGES, "--memory-limit", "900GiB")
    assert done.code == 2
    assert "is more than the" in done.err


def test_a_gpu_that_is_not_there(gpu: Gpu) -> None:
    done = gpu.run("well_behaved.py:ConvNet", *IMAGES, "--device", "cuda:93")
    assert done.code == 3
    assert "there is no `cuda:93`" in done.err


def test_other_processes_are_named_and_their_memory_is_not_ours(fake_gpu: Gpu) -> None:
    alone = fake_gpu.bsfind(*CHECK, "--memory-limit", "20GiB")
    shared = fake_gpu.bsfind(
        *CHECK, "--memory-limit", "20GiB", others=[(7654321, "jupyter", "9GiB")]
    )
    assert shared.code == 0, shared.err
    device = shared.report["device"]
    assert device["free_bytes"] == alone.report["device"]["free_bytes"] - (9 << 30)
    assert device["context_bytes"] == alone.report["device"]["context_bytes"]
    assert device["capacity_bytes"] == device["free_bytes"] < 20 << 30
    assert {"pid": 7654321, "name": "jupyter", "used_bytes": 9 << 30} in device["other_processes"]
    assert [warning["code"] for warning in shared.report["warnings"]] == ["other_processes"]
    assert "jupyter (PID 7654321, 9.0 GiB)" in shared.err


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        exhaustive(None, None, "3090"),
        exhaustive("cuda:1", None, "T4"),
        (None, "1", "T4"),
        ("cuda:1", "1,0", "3090"),
    ],
)
def test_visible_devices_are_counted_as_torch_does(
    fake_gpu: Gpu, device: str | None, visible: str | None, name: str
) -> None:
    done = fake_gpu.bsfind(
        *(*CHECK, *(() if device is None else ("--device", device))),
        gpu="rtx3090,t4",
        count=2,
        visible=visible,
        others=[(7654321, "jupyter", "1GiB")],
    )
    assert done.code == 0, done.err
    assert name in done.report["device"]["name"]


def test_no_visible_device(fake_gpu: Gpu) -> None:
    done = fake_gpu.run("well_behaved.py:ConvNet", *IMAGES, visible="")
    assert done.code == 3
    assert "no usable GPU was found" in done.err
    assert done.report["status"] == "failed"


def test_nvml_is_not_needed(fake_gpu: Gpu) -> None:
    images = ("--input-shape", "3,32,32", "--precision", "fp32")
    done = fake_gpu.run("well_behaved.py:ConvNet", *images, nvml=False)
    assert done.code == 0, done.err
    device = done.report["device"]
    assert device["driver"] is device["context_bytes"] is device["context_source"] is None
    # Without NVML torch cannot even say that it is out of memory: an assertion fails instead.
    assert any(trial["status"] == "oom" for trial in done.only["trials"])
    listed = fake_gpu.bsfind("gpus", nvml=False)
    assert listed.code == 0
    assert "shows no GPU" in listed.err
    assert "known GPU" in listed.out


def test_gpus_lists_them_all(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind("gpus", gpu="rtx3090,t4", count=2, visible="1")
    assert done.code == 0, done.err
    real, _, known = done.out.partition("known GPU")
    assert "NVIDIA GeForce RTX 3090" in real
    assert "T4" in real
    assert "H100" in known
    assert done.err.splitlines() == [
        "hint: `bsfind run … --gpu rtx-4090` predicts for one of the known GPUs"
    ]


def test_gpus_as_json_tells_real_from_known(fake_gpu: Gpu) -> None:
    done = fake_gpu.bsfind("gpus", "--json", gpu="rtx3090,t4", count=2)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert [gpu["index"] for gpu in document["gpus"]] == [0, 1]
    assert {"uuid", "name", "total_bytes", "free_bytes", "processes"} < document["gpus"][0].keys()
    assert len(document["known"]) > 50


def test_env_opens_the_device(gpu: Gpu) -> None:
    done = gpu.bsfind("env")
    assert done.code == 0, done.err
    assert "device: cuda:0 " in done.out


def test_an_older_gpu_has_no_bfloat16(fake_gpu: Gpu) -> None:
    done = fake_gpu.run(
        *("well_behaved.py:ConvNet", "--input-shape", "3,32,32", "--max-batch-size", "6"),
        *("--precision", "amp,tf32,bf16"),
        gpu="t4",
    )
    assert done.code == 0, done.err
    assert [(r["precision"], r["status"]) for r in done.report["results"]] == [
        ("amp-fp16", "ok"),
        ("tf32", "unsupported"),
        ("bf16", "unsupported"),
    ]


@pytest.mark.parametrize(
    "kind", ["assert", *map(exhaustive, ("illegal-address", "launch-failure"))]
)
def test_a_poisoned_context_is_the_model_s_fault_not_lack_of_memory(
    fake_gpu: Gpu, kind: str
) -> None:
    done = fake_gpu.run("well_behaved.py:ConvNet", *IMAGES, fail=f"{kind}:60")
    assert done.code == 4, done.err
    assert done.only["status"] == "error"
    assert all(trial["status"] != "oom" for trial in done.only["trials"])


def test_labels_that_are_made_cost_what_a_prediction_says(gpu: Gpu) -> None:
    """The forward passes that tell whether a model takes labels leave nothing in a trial."""
    answer = in_worker(
        gpu,
        f"""
        def trial(choice, target):
            with Worker(lambda line: None) as w:
                w.open(choice, 120)
                inputs = (parse_input_shape("64:int64:0..4096"),)
                w.load(Workload(target=f"{MODELS}/losses.py:{{target}}", inputs=inputs), "fp32", 120)
                trial = w.run_trial(8, 3, 120).trial
                return trial.peaks_by_step, [made.value for made in w.assumptions]
        real = DeviceChoice(memory_limit_bytes=1 << 30)
        gpu = DeviceChoice(device="sim", gpu=device.name)
        answer = [[trial(c, t) for c in (real, gpu)] for t in ("LabelledDecoder", "Decoder")]
        """,
    )
    assert isinstance(answer, list)
    (labelled, predicted), (plain, predicted_plain) = answer
    assert labelled == predicted
    assert plain == predicted_plain
    assert labelled[1] == ["the model's own loss from `targets` (N, 64)"]
    assert plain[1] == ["cross-entropy on the output (N, 64, 4096)"]

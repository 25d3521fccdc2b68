"""What fails, is kept, or is asked of a GPU while a step is traced, and whose fault it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS
from tests.workload.test_user_errors import function

from bsfind.errors import InternalError, TargetError, UntraceableError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace import torch_private
from bsfind.simulation.trace.cuda_paths import meta_kernel_gaps
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.self_check import problems
from bsfind.simulation.trace.torch_private import missing
from bsfind.simulation.trace.tracer import Tracer

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "models" / "faults.py"
A100 = GPU_SPECS["a100"]


def tracer(attribute: str, *shape: int, precision: str = "fp32", **settings: Any) -> Tracer:
    inputs = () if "batch_fn" in settings else (InputSpec(shape=shape, dtype="float32"),)
    settings = {name: f"{MODELS}:{value}" for name, value in settings.items()}
    workload = Workload(target=f"{MODELS}:{attribute}", inputs=inputs, **settings)
    return Tracer(workload, precision, A100)


def events(attribute: str, *shape: int, batch_size: int = 4, **settings: Any) -> list[int]:
    with tracer(attribute, *shape, **settings) as opened:
        return opened.program(batch_size, 2).trial_events


def failure(attribute: str, *shape: int, **settings: Any) -> Exception:
    with pytest.raises((TargetError, InternalError)) as raised:
        events(attribute, *shape, **settings)
    return raised.value


# ------------------------------------------------------------------------------ whose fault it is


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("WrongShape", "mat1 and mat2 shapes cannot be multiplied (4x20 and 21x5)"),
        ("WrongAttention", "Expected size for first two dimensions of batch2 tensor"),
        ("ChangedInPlace", "[torch.cuda.FloatTensor [4, 8]]"),
        ("Endless", "RecursionError"),
    ],
)
def test_what_pytorch_refuses_is_told_in_its_words(model: str, said: str) -> None:
    error = failure(model, 8)
    assert type(error) is TargetError
    assert said in str(error)
    assert "meta" not in str(error).lower()


@pytest.mark.parametrize("where", ["record", "run"])
@pytest.mark.parametrize("body", ["return {}['shape']", "raise RuntimeError('broken')"])
def test_a_bug_under_the_users_forward_is_bsfinds(
    monkeypatch: pytest.MonkeyPatch, where: str, body: str
) -> None:
    with tracer("WrongShape", 8) as opened:
        monkeypatch.setattr(Dispatcher, where, function("simulation/trace/dispatch.py", body))
        # Before anything that PyTorch would refuse.
        with pytest.raises(InternalError) as raised:
            opened.program(4, 2)
    assert "dispatch.py" in raised.value.detail


def test_a_kernel_that_misuses_an_operator_is_bsfinds(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "return torch.ones(2, 3) @ torch.ones(4, 5)"
    broken = function("simulation/trace/cuda_paths/attention_choice.py", body)
    monkeypatch.setattr(
        "bsfind.simulation.trace.cuda_paths.attention_choice.kernels",
        lambda _gpu: {"scaled_dot_product_attention": broken},
    )
    assert type(failure("Masked", 6, 16)) is InternalError


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="an older torch")
def test_what_torchs_meta_kernel_refuses_cannot_be_predicted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meta_kernel_gaps, "meta_kernels", dict)
    error = failure("Grouped", 8)
    assert type(error) is UntraceableError
    lines = MODELS.read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith("# here"))
    assert f"`_grouped_mm` in faults.py:{line} cannot be predicted" in error.message


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="an older torch")
def test_grouped_products_take_what_cuda_takes() -> None:
    assert 32 * 32 * 4 in events("Grouped", 8)  # 4 * 8 rows of 32
    assert "c10::BFloat16 != float" in str(failure("Grouped", 8, precision="amp-bf16"))


# ------------------------------------------------------------------------ private names of torch


def test_this_torch_has_them_all() -> None:
    assert missing() == []


def test_a_torch_that_lacks_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_get_sdp_priority_order")
    monkeypatch.delattr(torch._C, "_current_autograd_node")
    names = ["torch._C._current_autograd_node", "torch._C._get_sdp_priority_order"]
    assert sorted(missing()) == names
    assert all(name in sentence for name, sentence in zip(names, sorted(problems()), strict=True))
    with pytest.raises(UntraceableError) as raised:
        tracer("Masked", 6, 16)
    assert all(f"`{name}`" in raised.value.message for name in names)
    assert f"torch {torch.__version__}" in raised.value.message


def test_a_torch_without_the_key_of_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_name: str) -> None:
        raise RuntimeError("could not parse dispatch key: Fake")

    monkeypatch.setattr(torch_private, "_parse_key", unknown)
    assert missing() == ["torch._C.DispatchKey.Fake"]


def test_names_that_are_missing_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import torch\ndel torch._C._WeakTensorRef, torch._C.DisableTorchFunction\n"
        "del torch.autograd._get_sequence_nr\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "bsfind", "check", f"{MODELS}:Masked", "--input-shape", "6,16"]
    done = subprocess.run(
        [*command, "--gpu", "t4", "--batch-size", "2", "--precision", "fp32"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 4, done.stderr
    said = " ".join(done.stderr.split())
    for name in ("_C._WeakTensorRef", "_C.DisableTorchFunction", "autograd._get_sequence_nr"):
        assert f"`torch.{name}`" in said
    assert f"torch {torch.__version__} cannot be traced" in said


# ------------------------------------------------------------------------- what is kept by code


@pytest.mark.parametrize("model", ["MaskOnModel", "MaskOnClass", "MaskOfFunction", "MaskOfBatch"])
def test_each_trial_is_as_in_a_fresh_process(model: str) -> None:
    def peak(program: Any) -> int:
        held, most, sizes = 0, 0, []
        for event in (*program.load_events, *program.trial_events):
            if event >= 0:
                sizes.append(event)
                held += event
            else:
                held -= sizes[-event - 1]
            most = max(most, held)
        return most

    with tracer(model, 64, 16) as opened:
        first = {size: peak(opened.program(size, 2, exact=True)) for size in (3, 5)}
        opened._traces.clear()
        again = {size: peak(opened.program(size, 2, exact=True)) for size in (5, 3)}
    assert first == again
    with tracer(model, 64, 16) as another:  # as the next precision does
        assert {size: peak(another.program(size, 2, exact=True)) for size in (5, 3)} == first
    with tracer("Masked", 64, 16) as other:
        without = peak(other.program(3, 2))
    mask = 64 * 64 * 4 * (2 * 3 if model == "MaskOfBatch" else 1)
    assert without <= first[3] <= without + 2 * mask


def test_caches_of_functions_start_empty_in_each_trial() -> None:
    with tracer("MaskOfFunction", 64, 16) as opened:
        traced = [opened.program(size, 2, exact=True).trial_events for size in (3, 5, 7)]
        assert len({len(found) for found in traced}) == 1
        assert opened._traces[2, None].scale


# --------------------------------------------------------------------------- a CUDA build's names


def test_libraries_find_what_a_cuda_build_has() -> None:
    before = torch.version.cuda, torch.backends.cudnn.is_available(), vars(torch._C).keys() | set()
    assert events("AsksLibraries", 8)
    after = torch.version.cuda, torch.backends.cudnn.is_available(), vars(torch._C).keys() | set()
    assert before == after


@pytest.mark.parametrize(
    ("model", "name", "mark"),
    [
        ("Captures", "torch.cuda.CUDAGraph", "captured here"),
        ("TakesStream", "torch._C._cuda_beginAllocateCurrentStreamToPool", "pool here"),
    ],
)
@pytest.mark.skipif(torch.version.cuda is not None, reason="of the CPU build")
def test_what_cannot_be_answered_says_what_it_is(model: str, name: str, mark: str) -> None:
    error = failure(model, 8)
    assert type(error) is UntraceableError
    lines = MODELS.read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith(mark))
    assert error.message.startswith(f"`{name}`, called in faults.py:{line}")


def test_counts_of_labels_have_the_bins_that_were_asked_for() -> None:
    with tracer("Counts", 8) as opened:
        assert 100 * 8 in opened.program(4, 2).trial_events
        assert "`minlength`" in opened.notes["value_assumed"]


# ---------------------------------------------------------------------------------- one device


@pytest.mark.parametrize("model", ["parallel", "parallel_inside", "ParallelFunction"])
def test_data_parallel_is_one_device(model: str) -> None:
    assert events(model, 3, 9, 9) == events("convolutions", 3, 9, 9)


def test_data_parallel_is_told() -> None:
    with tracer("parallel", 3, 9, 9) as opened:
        assert "that of one GPU" in opened.notes["data_parallel"]
    assert events("parallel", 3, 9, 9, step="step_inside")


# ------------------------------------------------------------------- where a batch's tensors lie


def test_what_a_batch_function_leaves_on_the_cpu_stays_there() -> None:
    assert events("Packs", batch_fn="lengths_on_cpu")
    error = failure("Adds", batch_fn="lengths_on_cpu")
    assert "found at least two devices, cuda:0 and cpu" in str(error)
    assert isinstance(error, TargetError)
    assert "those that `--batch-fn` left on the CPU stay there" in error.hint


def test_a_batch_that_takes_no_notice_of_the_device_is_moved() -> None:
    assert events("Adds", batch_fn="all_on_cpu")
    error = failure("Packs", batch_fn="all_on_cpu")
    assert "should be a 1D CPU int64 tensor, but got 1D cuda:0 Long tensor" in str(error)
    assert isinstance(error, TargetError)
    assert "all moved to the GPU, as `--batch-fn` made none there" in error.hint

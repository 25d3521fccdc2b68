"""Operators x dtypes x devices: the tracer accepts and refuses what PyTorch's CUDA build does."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import fakegpu
from tests.gpu.gpu import FAKE_VENV, ROOT
from tests.simulation.dtype_cases import Question, answer, questions

from bsfind.input_spec import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.operators.call import CudaTarget
from bsfind.simulation.operators.cuda_checks.texts import in_words_of_cuda
from bsfind.simulation.tracing.tracer import Tracer

pytestmark = pytest.mark.skipif(
    not fakegpu.available(FAKE_VENV), reason=f"no fake GPU: `make setup` builds it ({FAKE_VENV})"
)

MODEL = Path(__file__).parents[1] / "models" / "traced.py"
H100 = CudaTarget(capability=(9, 0), sm_count=132, max_threads_per_sm=2048, torch_version=(2, 13))

_BY_ENTRY: dict[str, list[Question]] = {}
for _question in questions():
    _BY_ENTRY.setdefault(_question.entry.name, []).append(_question)

# What PyTorch says of tensors on two devices depends on the kernel that notices first.
_DEVICES = re.compile(r"same device|DeviceType|expected device|on cpu|host memory")


@pytest.fixture(scope="module")
def on_gpu() -> dict[str, str]:
    """The answers of PyTorch's CUDA build."""
    process = subprocess.run(
        [str(FAKE_VENV / "bin" / "python"), "-m", "tests.simulation.dtype_answers"],
        cwd=ROOT,
        env={
            **fakegpu.environment(FAKE_VENV, gpu="h100", cudnn=False),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return dict(json.loads(line) for line in process.stdout.splitlines())


@pytest.fixture(scope="module")
def simulated() -> Iterator[None]:
    """torch on the simulated GPU."""
    workload = Workload(
        target=f"{MODEL}:AsksForCuda", inputs=(InputSpec(shape=(8,), dtype="float32"),)
    )
    with Tracer(workload, "fp32", H100):
        yield


@pytest.mark.parametrize("entry", _BY_ENTRY)
def test_the_tracer_refuses_what_cuda_refuses(
    entry: str, on_gpu: dict[str, str], simulated: None
) -> None:
    different = {}
    for question in _BY_ENTRY[entry]:
        expected, found = on_gpu[question.name], answer(question, in_words_of_cuda)
        assert "meta" not in found.lower(), f"{question.name}: {found}"
        if not _agree(expected, found) and not _is_known(question, expected, found):
            different[question.name] = (expected, found)
    assert not different, (
        f"{len(different)} of {len(_BY_ENTRY[entry])}: {next(iter(different.items()))}"
    )


def _agree(expected: str, found: str) -> bool:
    if expected == found:
        return True
    return _DEVICES.search(expected) is not None and _DEVICES.search(found) is not None


def _is_known(question: Question, expected: str, found: str) -> bool:
    """Tell whether a difference is one of those that are known, none of which lets a model through
    that people train: the tracer is stricter, has another text, or the dtypes are no model's.
    """
    name, dtypes = question.entry.name, set(question.dtypes)
    if "GET was unable to find an engine" in found:
        return True  # the stub in cuDNN's place takes every dtype
    if found != "accepted" and expected != "accepted":
        return name.startswith(_OTHER_TEXTS) or "complex64" in dtypes or "bool" in dtypes
    if found != "accepted":
        return name.startswith(_STRICTER) and bool(
            dtypes & {"uint8", "bool", "complex64", *_FLOATS}
        )
    if name == "soft_margin_loss":
        return "bool" in dtypes
    if name.startswith(("LSTM", "GRU")):
        return dtypes == {"complex64"}
    return name in _ACCEPTED_TOO or (dtypes == {"bool"} and name in _ACCEPTED_OF_BOOL)


_FLOATS = ("float32", "float16", "bfloat16", "float64")
# Where the tracer's text is another one, or is said by another operator of the same layer.
_OTHER_TEXTS = (
    "RNN",
    "conv_tbc",
    "embedding_bag",
    "stft",
    "index, two",
    "masked_fill, tensor",
    "conv2d, depthwise",
)
# uint8 labels and conditions, which CUDA still takes, with a warning.
# torch has no meta kernel of `complex` in half precision.
_STRICTER = (
    "complex",
    "cross_entropy",
    "nll_loss",
    "where",
    "embedding_bag, offsets",
    "masked_fill",
    "ctc_loss",
)
_ACCEPTED_TOO = ("linalg.matrix_exp", "fft.irfft")
_ACCEPTED_OF_BOOL = (
    *("pow", "fmod", "addcmul", "addcdiv", "clamp", "floor", "argmax", "topk", "bucketize", "relu"),
    *("soft_margin_loss",),
)


def test_integers_are_refused_as_by_the_real_cudnn(simulated: None) -> None:
    # What cuDNN 9.20 says of a plan for them on the fake GPU with the real library.
    for question in _BY_ENTRY["conv2d"]:
        if set(question.dtypes) <= {"int32", "uint8"} and len(set(question.dtypes)) == 1:
            found = answer(question, in_words_of_cuda)
            assert (
                found
                == "RuntimeError: GET was unable to find an engine to execute this computation"
            )

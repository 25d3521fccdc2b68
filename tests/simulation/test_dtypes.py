"""Operators x dtypes x devices: the tracer accepts and refuses what PyTorch's CUDA build does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import fakegpu
from tests.gpu.gpu import FAKE_VENV, printed_on_fake_gpu
from tests.simulation.dtype_cases import Question, answer, questions
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.kernels.argument_checks.registry import in_words_of_cuda
from bsfind.simulation.trace.tracer import Tracer

pytestmark = [
    pytest.mark.one_torch,  # the answers are those of the fake GPU's release
    pytest.mark.skipif(
        not fakegpu.available(FAKE_VENV),
        reason=f"no fake GPU: `make setup` builds it ({FAKE_VENV})",
    ),
]

MODEL = Path(__file__).parents[1] / "models" / "traced.py"
H100 = GPU_SPECS["h100"]

_BY_ENTRY: dict[str, list[Question]] = {}
for _question in questions():
    _BY_ENTRY.setdefault(_question.entry.name, []).append(_question)


@pytest.fixture(scope="module")
def on_gpu() -> dict[str, str]:
    """The answers of PyTorch's CUDA build."""
    printed = printed_on_fake_gpu("-m", "tests.simulation.dtype_answers", gpu="h100")
    return dict(json.loads(line) for line in printed.splitlines())


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
        if expected != found and not _is_known(question, expected, found):
            different[question.name] = (expected, found)
    assert not different, (
        f"{len(different)} of {len(_BY_ENTRY[entry])}: {next(iter(different.items()))}"
    )


def _is_known(question: Question, expected: str, found: str) -> bool:
    """Tell whether a difference is one of those that are known."""
    name, dtypes, host = question.entry.name, question.dtypes, question.on_host
    if "accepted" not in (expected, found):
        return (name, "host" if host == 0 else dtypes[0]) in _OTHER_TEXTS
    if found == "accepted":
        return (name, dtypes) in _ACCEPTED_TOO
    if name.startswith("conv"):  # the stub in cuDNN's place takes every dtype
        return set(dtypes) in ({"int32"}, {"uint8"}) and "GET was unable to find" in found
    if name == "embedding_bag, offsets":  # meta's kernel takes int64 and int32 only
        return bool({"uint8", "bool"} & set(dtypes)) and "to be long or int" in found
    return name == "ctc_loss" and host == 0


# Where both refuse, in other words: the first operand is on the host, or of this dtype.
_OTHER_TEXTS = {
    ("conv_tbc", "host"),
    *((f"{cell}{state}", "host") for cell in ("LSTMCell", "GRUCell") for state in ("", ", hidden")),
    *((f"batch_norm, {kind}", "host") for kind in ("4-D", "4-D, eval", "no statistics")),
    ("instance_norm", "host"),
    ("stft", "bool"),
    *((f"embedding_bag, {kind}", "bool") for kind in ("sum", "mean", "max", "weights")),
    ("RNN", "int64"),
    ("index, two", "float32"),  # the position of a mask that is too short
}
# No models' dtypes.
_ACCEPTED_TOO = {
    ("addcdiv", ("bool",) * 3),
    ("linalg.matrix_exp", ("float16",)),
    ("LSTM, hidden", ("complex64",) * 4),
    ("GRU, hidden", ("complex64",) * 3),
}


def test_integers_are_refused_as_by_the_real_cudnn(simulated: None) -> None:
    # What cuDNN 9.20 says of a plan for them on the fake GPU with the real library.
    for question in _BY_ENTRY["conv2d"]:
        if set(question.dtypes) <= {"int32", "uint8"} and len(set(question.dtypes)) == 1:
            found = answer(question, in_words_of_cuda)
            assert (
                found
                == "RuntimeError: GET was unable to find an engine to execute this computation"
            )

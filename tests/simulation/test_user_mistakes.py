"""Mistakes in the user's code are told as theirs, with their line; what they keep or ask for works."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.exhaustive import exhaustive
from tests.simulation.forks import in_fork
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.errors import TargetError, UntraceableError
from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace.program import Program
from bsfind.simulation.trace.tracer import Tracer

T4 = GPU_SPECS["t4"]

MODEL = """
import sys
import torch
from torch import nn
from torch.nn import functional as F

class Stop(BaseException):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        {init}

    def forward(self, x):
        y = self.layer(x)
        {forward}
"""


def traced(
    folder: Path,
    forward: str = "return y",
    *,
    init: str = "pass",
    shape: tuple[int, ...] = (6, 8),
    precision: str = "fp32",
) -> tuple[Program, dict[str, str]]:
    file = folder / "mistake.py"
    indented = forward.replace("\n", "\n        ")
    file.write_text(MODEL.format(init=init, forward=indented), encoding="utf-8")
    workload = Workload(target=f"{file}:Net", inputs=(InputSpec(shape=shape, dtype="float32"),))
    with Tracer(workload, precision, T4) as tracer:
        return tracer.program(4, 2), tracer.notes


ATTENTION = "y = y[:, None]\nreturn F.scaled_dot_product_attention(y, y, y, attn_mask={})"


@pytest.mark.parametrize("precision", ["fp32", exhaustive("amp-fp16")])
@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (ATTENTION.format("y.new_ones(5, 5).bool()"), "The expanded size of the tensor (6)"),
        (
            "return F.batch_norm(y, y.new_zeros(5), y.new_ones(5))",
            "should contain 6 elements not 5",
        ),
        ("return F.layer_norm(y, (7,))", "normalized_shape"),
        ("return y + y.new_ones(5, 8)", "must match the size of tensor b (5)"),
        (
            "y = y.new_ones(1 << 14, 1 << 14)\nreturn y + y[:5]",
            "must match the size of tensor b (5)",
        ),
        ("return torch.cat([y, y[:, :, 1:]], 1)", "Sizes of tensors must match"),
        ("return y + torch.ones(8)", "at least two devices, cuda:0 and cpu"),
        ("return torch.ops.nowhere.nothing(y)", "nothing"),
        (  # too large to be tried on the CPU
            "return F.conv1d(y.new_ones(4, 6, 1 << 22), y.new_ones(5, 2, 1))",
            "expected input[4, 6, 4194304] to have 2 channels, but got 6 channels instead",
        ),
        (
            "return F.conv_transpose1d(y, y.new_ones(5, 2, 1))",
            "expected input[4, 6, 8] to have 5 channels, but got 6 channels instead",
        ),
        (
            "return torch.gru_cell(y[:, 0], y.new_ones(3, 8), y.new_ones(24, 8), y.new_ones(24, 8))",
            "Input batch size 4 doesn't match hidden batch size 3",
        ),
        (
            "y = y[:, None]\nreturn F.scaled_dot_product_attention(y, y, y[:, :, :3])",
            "key and value must have the same sequence length",
        ),
        (
            "return y + F.embedding(y.new_full((1,), 9).long(), y.new_ones(5, 8))",
            "index out of range: 9, for 5 rows of the embedding",
        ),
        (
            "return F.cross_entropy(y[:, 0], y.new_full((4,), 8).long())",
            "index out of range: 8, for 8 classes",
        ),
        ("sys.exit(3)", "sys.exit(3)"),
        ("raise Stop('enough')", "Stop: enough"),
        ("raise GeneratorExit('closed')", "GeneratorExit: closed"),
    ],
)
def test_a_mistake_is_the_users(tmp_path: Path, forward: str, said: str, precision: str) -> None:
    with pytest.raises(TargetError) as raised:
        traced(tmp_path, forward, precision=precision)
    assert type(raised.value) is TargetError
    assert said in raised.value.message + raised.value.detail
    assert "mistake.py" in raised.value.message + raised.value.detail
    assert "meta" not in raised.value.message


def test_sys_exit_of_a_constructor_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"the code called `sys.exit\(2\)`, building the model"):
        traced(tmp_path, init="sys.exit(2)")


@pytest.mark.parametrize(
    "init",
    [
        "self.more = nn.LazyLinear(4)",
        "self.more = nn.Sequential(nn.LazyConv1d(4, 1), nn.LazyBatchNorm1d())",
    ],
)
def test_lazy_layers_are_like_those_of_known_sizes(tmp_path: Path, init: str) -> None:
    known = init.replace("LazyLinear(4)", "Linear(8, 4)")
    known = known.replace("LazyConv1d(4", "Conv1d(6, 4").replace(
        "LazyBatchNorm1d()", "BatchNorm1d(4)"
    )
    assert known != init
    lazy, _ = traced(tmp_path, "return self.more(y)", init=init)
    plain, _ = traced(tmp_path, "return self.more(y)", init=known)
    assert lazy.trial_events == plain.trial_events


def test_code_may_read_how_much_memory_is_used(tmp_path: Path) -> None:
    reads = (
        "stats = torch.cuda.memory_stats()\n"
        "assert stats['allocated_bytes.all.current'] == torch.cuda.memory_allocated() > 0\n"
        "assert stats['num_ooms'] == 0 < torch.cuda.max_memory_reserved()\n"
        "free, total = torch.cuda.mem_get_info()\n"
        "assert 0 < free < total\n"
        "return y"
    )
    assert traced(tmp_path, reads)[0].trial_events == traced(tmp_path)[0].trial_events


def test_weights_are_loaded_to_the_gpu(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    init = (
        f"torch.save(nn.Linear(8, 8).state_dict(), {str(path)!r}); "
        f"self.layer.load_state_dict(torch.load({str(path)!r}, map_location='cuda'))"
    )
    assert traced(tmp_path, init=init)[0].trial_events == traced(tmp_path)[0].trial_events


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_modules_call_torchs_functions(tmp_path: Path) -> None:
    init = "self.more = torch.jit.script(nn.Sequential(nn.Softplus(), nn.Dropout(0.1)))"
    assert traced(tmp_path, "return self.more(y)", init=init)[0].trial_events


def test_a_loop_until_a_value_changes_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsfind.simulation.trace.assumed_reads._MAX_READS", 50)
    loop = "m = y > 5\nwhile not m.any():\n    m = m | (torch.rand_like(y) > 0.5)\nreturn y * m"
    _, notes = traced(tmp_path, loop)
    assert any("it is taken as True" in note for note in notes.values())


def test_a_loop_without_an_end_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bsfind.simulation.trace.assumed_reads._MAX_READS", 50)
    loop = "while True:\n    if y.sum() > 0 and y.sum() < 0:\n        return y"
    with pytest.raises(UntraceableError, match=r"mistake.py:\d+` loops until a value has changed"):
        traced(tmp_path, loop)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_that_compiles_itself_cannot_be_predicted(tmp_path: Path) -> None:
    compiled = "import torch._dynamo\nreturn torch._dynamo.optimize('eager')(self.layer)(y)"

    def refused() -> dict[str, str]:
        with pytest.raises(UntraceableError, match="the code compiles itself"):
            traced(tmp_path, compiled)
        return {"status": "refused"}

    # Traces release their blocks at other times in a process that has compiled.
    assert in_fork(refused) == {"status": "refused"}

"""torch's compiler and symbolic shapes: what a prediction leaves out, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.inputs import InputSpec
from bsfind.settings import Workload
from bsfind.simulation.trace.masquerade.compiler import uncompiled
from bsfind.simulation.trace.tracer import Tracer

NOT_BEFORE_IT_IS_USED = """
import sys, torch
from bsfind.workload.late_imports import postpone_imports
postpone_imports()
layer = torch.nn.Linear(2, 2)
assert torch.ones(2, device="meta").relu().shape == (2,)
torch._check(True)
optimizer = torch.optim.AdamW(layer.parameters())
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
assert not {"torch._dynamo.convert_frame", "sympy.core", "torch.utils._sympy"} & set(sys.modules)
import torch._dynamo.config
assert torch._dynamo.is_compiling() is False
assert torch._dynamo.config.verbose is False
assert "torch._dynamo.convert_frame" in sys.modules
postpone_imports()
assert sys.modules["torch._dynamo"].__file__
"""

MARKS_HOLD = """
import torch
from bsfind.workload.late_imports import postpone_imports
postpone_imports()
import torch._dynamo
@torch._dynamo.disable
def left_alone(x):
    return x.sin()
assert left_alone(torch.zeros(1)) == 0
graphs = []
def backend(graph, inputs):
    graphs.append(graph.code)
    return graph.forward
torch.compile(lambda x: left_alone(x.cos() + 1).exp(), backend=backend)(torch.zeros(1))
assert len(graphs) == 2 and "cos" in graphs[0] and "exp" in graphs[1], graphs
assert "sin" not in "".join(graphs), graphs
"""

ASKED_FOR_TRITON = """
import sys, torch, types
from bsfind.workload.late_imports import postpone_imports
postpone_imports()
of_torchvision = types.ModuleType("torchvision.ops.roi_align")
exec("from torch._dynamo.utils import is_compile_supported", of_torchvision.__dict__)
assert "torch._dynamo.convert_frame" not in sys.modules
asked = of_torchvision.is_compile_supported("cpu")
assert "torch._dynamo.convert_frame" in sys.modules
import torch._dynamo.utils as utils
from torch._dynamo.utils import is_compile_supported
assert asked is is_compile_supported("cpu") and torch._dynamo.utils is utils
assert utils is sys.modules["torch._dynamo.utils"] and utils.__file__
"""

ONE_MODULE_OF_EACH_NAME = """
import sys, torch
from bsfind.workload.late_imports import postpone_imports
postpone_imports()
%s
import torch._dynamo.utils
from torch._dynamo import convert_frame, utils
assert utils is torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and utils.__file__
assert convert_frame.counters is utils.counters
"""
AFTER_ITS_PACKAGE = ONE_MODULE_OF_EACH_NAME % "import torch._dynamo.config"
BEFORE_ITS_PACKAGE = ONE_MODULE_OF_EACH_NAME % "from torch._dynamo.utils import counters"

NUMBERS_AND_SHAPES = """
import sys, torch
from bsfind.workload.late_imports import postpone_imports
postpone_imports()
torch._refs.add(torch.ones(2, device="meta"), 1)
import sympy
class Own(sympy.Basic):
    pass
assert isinstance(Own(), sympy.core.basic.Basic) and isinstance(Own(), sympy.Basic)
assert sys.modules["sympy"].__file__
try:
    torch._refs.add(torch.ones(2, device="meta"), "two")
except ValueError as error:
    assert "Unexpected type" in str(error)
else:
    raise AssertionError
from torch.fx.experimental.symbolic_shapes import ShapeEnv, expect_true
import torch.fx.experimental.symbolic_shapes as shapes
assert expect_true is shapes.expect_true and shapes.__file__
n = ShapeEnv().create_unbacked_symint()
torch._check(n >= 2)
for wrong, kind in ((False, RuntimeError), (1, TypeError)):
    try:
        torch._check(wrong)
    except kind:
        pass
    else:
        raise AssertionError
"""


@pytest.mark.parametrize(
    "code",
    [
        NOT_BEFORE_IT_IS_USED,
        MARKS_HOLD,
        NUMBERS_AND_SHAPES,
        ASKED_FOR_TRITON,
        AFTER_ITS_PACKAGE,
        BEFORE_ITS_PACKAGE,
    ],
)
def test_the_compiler_waits_until_it_is_used(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MODELS = Path(__file__).parents[1] / "models" / "compiled.py"


def traced(attribute: str, **options: bool) -> tuple[Sequence[int], dict[str, str]]:
    """Return what a step allocates, and the notes of the trace."""
    spec = InputSpec(shape=(8,), dtype="float32")
    workload = Workload(target=f"{MODELS}:{attribute}", inputs=(spec,), **options)
    with Tracer(workload, "fp32", GPU_SPECS["a100"]) as tracer:
        return tracer.program(16, steps=2).trial_events, tracer.notes


@pytest.mark.parametrize("attribute", ["wrapped", "in_place", "part", "function", "method"])
def test_a_compiled_model_is_traced_uncompiled(attribute: str) -> None:
    torch_compile = torch.compile
    expected, notes = traced("plain")
    assert "uncompiled" not in notes
    events, notes = traced(attribute)
    assert events == expected
    assert "`torch.compile` in compiled.py:" in notes["uncompiled"]
    assert torch.compile is torch_compile


def test_the_option_is_predicted_uncompiled() -> None:
    expected, _ = traced("plain")
    events, notes = traced("plain", compile=True)
    assert events == expected
    assert notes["uncompiled"].startswith("`--compile` is not followed")


def test_functions_that_torch_compiles_for_itself_are_compiled() -> None:
    notes: dict[str, str] = {}
    code = "import torch; compiled = torch.compile(function, backend='eager')"

    def function() -> None:
        pass

    with uncompiled(notes.setdefault):
        of_torch = {"__name__": "torch._higher_order_ops.base_hop", "function": function}
        exec(code, of_torch)
        assert not notes
        of_the_user = {"__name__": "models", "function": function}
        exec(code, of_the_user)
    assert list(notes) == ["uncompiled"]
    assert of_torch["compiled"] is not function
    assert of_the_user["compiled"] is function


def test_functions_of_libraries_count_when_they_are_called(tmp_path: Path) -> None:
    notes: dict[str, str] = {}
    library = tmp_path / "site-packages" / "library.py"
    source = "import torch\n@torch.compile(dynamic=False)\ndef double(x):\n    return 2 * x\n"
    with uncompiled(notes.setdefault):
        variables: dict[str, Any] = {"__name__": "library"}
        exec(compile(source, str(library), "exec"), variables)
        assert not notes
        assert variables["double"](4) == 8
    assert notes["uncompiled"].startswith("`torch.compile` of `library.double` is not followed")

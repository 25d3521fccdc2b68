"""No file of the worker's side but one names anything private of torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "bsfind"
PARTS = ("simulation/trace", "simulation/kernels", "devices", "workload", "worker", "launch")
LOOKUPS = SOURCE / "simulation" / "trace" / "torch_private.py"

ALLOWED = {
    # Documented for users (docs.pytorch.org/docs/stable/torch_cuda_memory.html); without them a
    # measurement lacks the recording for its extrapolation, and nothing else.
    ("devices/cuda_steps.py", "torch.cuda.memory._record_memory_history"),
    ("devices/cuda_steps.py", "torch.cuda.memory._snapshot"),
    # Of the measuring device, which a torch without it does without.
    ("devices/cuda.py", "torch._C"),
    ("devices/cuda.py", "torch._C._cuda_clearCublasWorkspaces"),
    # Of measured steps too, which go without the tracer: tells storages that gradients or outputs share.
    ("workload/training.py", "storage._cdata"),
    ("workload/outputs.py", "storage._cdata"),
    # The process group whose other ranks are absent has no public name (torch 2.6-2.14).
    ("workload/parallel.py", "from torch.testing._internal.distributed.fake_pg import FakeStore"),
    # What `module.compile()` sets.
    ("workload/compilation.py", "module._compiled_call_impl"),
    ("workload/compilation.py", "module._call_impl"),
    # In a launched command, likewise. The hook of the first use of the device has no public name.
    ("launch/probe/_bsfind_probe.py", "torch.cuda.memory._record_memory_history"),
    ("launch/probe/_bsfind_probe.py", "cuda.memory._snapshot"),
    ("launch/probe/_bsfind_probe.py", "torch.cuda._lazy_call"),
    ("launch/probe/_bsfind_probe.py", "self._torch.nn.modules.conv._ConvNd"),
    ("launch/probe/_bsfind_probe.py", "os._exit"),
    # Not torch's.
    ("worker/loop.py", "os._exit"),
    ("worker/processes.py", "os._exit"),
    ("workload/training.py", "os._exit"),
    ("workload/user_errors.py", "sys._getframe"),
    ("workload/draws.py", "sys._getframe"),
    ("workload/late_imports.py", "sys._getframe"),
    ("simulation/trace/assumed_reads.py", "sys._getframe"),
    ("simulation/trace/masquerade/compiler.py", "sys._getframe"),
    ("simulation/trace/value_shapes.py", "sys._getframe"),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def operators() -> list[str]:
    """Return the private operators that are looked up at the start."""
    for node in ast.walk(ast.parse(LOOKUPS.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_OPERATORS":
            strings = [part for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            return [str(part.value) for part in strings]
    raise AssertionError("no list of operators")


def private_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            base = ast.unparse(node.value)
            if base.split(".")[0] not in ("self", "cls") and base != "torch.ops.bsfind":
                yield f"{base}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if any(map(is_private, names)):
                yield ast.unparse(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("torch.") and any(map(is_private, alias.name.split("."))):
                    yield ast.unparse(node)


FILES = [
    file for part in PARTS for file in sorted((SOURCE / part).rglob("*.py")) if file != LOOKUPS
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_private_names_of_torch_are_looked_up_in_one_module(file: Path) -> None:
    known = {f"{base}.{name}" for name in operators() for base in ("aten", "torch.ops.aten")}
    own = {"own._fused_rms_norm", "call._replace"}  # the tracer's operator; a NamedTuple's method
    path = file.relative_to(SOURCE).as_posix()
    found = [
        name
        for name in private_names(ast.parse(file.read_text(encoding="utf-8")))
        if name not in known | own and (path, name) not in ALLOWED
    ]
    assert found == []


def test_there_are_private_names_to_find() -> None:
    assert len(FILES) > 60
    assert list(private_names(ast.parse("x = torch._C._current_autograd_node()"))) == [
        "torch._C._current_autograd_node",
        "torch._C",
    ]
    assert list(private_names(ast.parse("from torch.nn.modules.conv import _ConvNd")))

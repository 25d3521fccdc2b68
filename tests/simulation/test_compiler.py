"""torch's compiler is not imported for its two marks, and is there for all else."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys, torch
from bsfind.simulation.trace.masquerade.torch_functions import postpone_compiler
postpone_compiler()
layer = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(layer.parameters())
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
assert "torch._dynamo.convert_frame" not in sys.modules
import torch._dynamo.config
assert torch._dynamo.is_compiling() is False
assert torch._dynamo.config.verbose is False
assert "torch._dynamo.convert_frame" in sys.modules
postpone_compiler()
assert sys.modules["torch._dynamo"].__file__
"""


def test_the_compiler_waits_until_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Which statements of a notebook are run again for the GPU that is predicted."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from bsfind.python.gpu_variables import asking_statements, names_of_host

VARIABLES: dict[str, Any] = {
    "torch": torch,
    "available": torch.cuda.is_available,
    "args": types.SimpleNamespace(device="cpu"),
    "count": len,
    "width": 8,
}


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (['device = "cuda" if torch.cuda.is_available() else "cpu"'], ["device"]),
        (['d = torch.device("cuda:0") if available() else torch.device("cpu")'], ["d"]),
        (["use = torch.cuda.is_available()", 'd: str = "cuda" if use else "cpu"'], ["use", "d"]),
        (['d = "cpu"\nif torch.cuda.is_available():\n    d = "cuda"'], ["d"]),
        (['if hasattr(torch, "accelerator") and available(): d = f"cuda:{0}"'], ["d"]),
        (["d = torch.accelerator.current_accelerator()"], ["d"]),
        (["not python", "d = available()"], ["d"]),
        # Bound again by something else, or from something that was.
        (["d = available()", 'd = "cpu"'], []),
        (["d = available()", "def d(): pass"], []),
        (["d = available()", "import x as d"], []),
        (["use = available()", "d = not use", "use = False"], []),
        (["use = available()", "d = not use", "use = available()"], ["use"]),
        # What may be another in the worker, or does more than to ask.
        (["d = args.device if available() else 0"], []),
        (["d = width if available() else 0"], []),
        (["d = count([available()])"], []),
        (["if available(): torch.cuda.manual_seed(1)"], []),
        (["d = torch.rand(1) if available() else 0"], []),
        (["args.device = available()"], []),
        (["for d in [available()]: pass"], []),
        (["d = 3", 'd = torch.device("cpu")'], []),
    ],
)
def test_asking_statements(cells: list[str], names: list[str]) -> None:
    assert list(asking_statements(cells, VARIABLES)) == names


def test_names_of_host() -> None:
    variables = {
        "device": "cpu",
        "my_DEVICE": torch.device("cpu"),
        "Config.device": "mps",
        "Module._device": torch.device("cpu"),
        "gpu_device": torch.device("cuda"),
        "map_location": "cpu",
        "device_name": "cpu",
        "no_device": torch.ones(2),
    }
    assert names_of_host(variables) == ["device", "my_DEVICE", "Config.device"]

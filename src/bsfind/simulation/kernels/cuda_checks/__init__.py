"""What CUDA's operators refuse and meta kernels accept: dtypes, and tensors on another device.

Each module has the checks of a family of operators, in the order in which PyTorch makes them and
with its texts (torch 2.13, as the CUDA build prints them).
"""

from __future__ import annotations

from collections.abc import Sequence

from bsfind.simulation.kernels.call import Call
from bsfind.simulation.kernels.cuda_checks import (
    arithmetic,
    attention,
    convolutions,
    indexing,
    kernels,
    losses,
    normalization,
    products,
    recurrent,
)
from bsfind.simulation.kernels.cuda_checks.check import Check, checks_for, specs_of
from bsfind.simulation.kernels.cuda_checks.devices import check_devices
from bsfind.workload.blame import stands_for_torch

__all__ = [
    "Check",
    "arithmetic",
    "attention",
    "checks_for",
    "convolutions",
    "indexing",
    "kernels",
    "losses",
    "normalization",
    "products",
    "recurrent",
    "refuse",
]


@stands_for_torch
def refuse(call: Call, checks: Sequence[Check], *, is_pointwise: bool) -> None:
    """Raise what CUDA raises for a call, if it does.

    Args:
        call: its tensors; `on_gpu` tells where they are. One without any on the GPU is not CUDA's.
        checks: of the operator.
        is_pointwise: it works element by element.
    """
    on_gpu = [tensor.on_gpu for _, tensor in specs_of(call)]
    if not any(on_gpu):
        return
    try:
        if not all(on_gpu):
            check_devices(call, is_pointwise)
        for check in checks:
            check(call)
    except (RuntimeError, IndexError) as refusal:  # raised anew: not a failure of the check
        raise refusal.with_traceback(None) from None

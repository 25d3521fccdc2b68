"""Products with weights of 4 bits, as in QLoRA: `gemm_4bit` of bitsandbytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bsfind.simulation.trace.calls import Args, Kwargs

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts


def handlers() -> dict[str, Handler]:
    """Return the handlers of these operators."""
    return {"bitsandbytes::gemm_4bit": _gemm_4bit}


def _gemm_4bit(_: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Multiply with the whole weight in the dtype of the input, which lives as long as the product.

    bitsandbytes does so for more than 1536 rows (bitsandbytes/backends/cuda/ops.py, 0.50). For fewer,
    kernels that it chooses by the GPU may do without: there, the size of one weight is the most that a
    prediction is too large by.
    """
    given = dict(zip(("A", "B", "shapeB", "absmax"), args, strict=False)) | kwargs
    scales = given.get("absmax_8bit")
    if scales is not None:  # these are quantised themselves
        unscaled = torch.empty_like(scales, dtype=torch.float32)
        scales = unscaled + given["absmax_offset"]
    x = given["A"]
    weight = torch.empty(given["shapeB"], dtype=x.dtype, device=x.device)
    return torch.nn.functional.linear(x, weight, given.get("bias"))

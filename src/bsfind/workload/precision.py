"""The precisions: dtypes, autocast and GradScaler of each."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """How a step runs in one precision.

    Attributes:
        name: a key of `settings.PRECISIONS`.
        autocast_dtype: dtype of `torch.autocast`; None: no autocast.
        sharded_dtype: dtype of the parameters that FSDP2 gathers, and of computations with them; gradients
            are reduced in float32; None: that of the shards.
        model_dtype: dtype that the model and floating inputs are cast to; None: as they are.
        grad_scaler: scale the loss (torch.amp.GradScaler): float16 gradients would underflow.
        matmul_tf32: allow TF32 in matrix products. Convolutions use it by default in PyTorch, in
            fp32 too (torch.backends.cudnn.allow_tf32), which bsfind leaves as it is.
    """

    name: str
    autocast_dtype: torch.dtype | None = None
    model_dtype: torch.dtype | None = None
    sharded_dtype: torch.dtype | None = None
    grad_scaler: bool = False
    matmul_tf32: bool = False

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context that the forward pass and the loss run in."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)

    def set_matmul_precision(self) -> None:
        """Set the process-wide TF32 switch of matrix products."""
        torch.set_float32_matmul_precision("high" if self.matmul_tf32 else "highest")


_PLANS = {
    plan.name: plan
    for plan in (
        PrecisionPlan(name="fp32"),
        PrecisionPlan(name="tf32", matmul_tf32=True),
        PrecisionPlan(name="amp-fp16", autocast_dtype=torch.float16, grad_scaler=True),
        PrecisionPlan(name="amp-bf16", autocast_dtype=torch.bfloat16),
        PrecisionPlan(name="bf16", model_dtype=torch.bfloat16),
        PrecisionPlan(name="mp-bf16", sharded_dtype=torch.bfloat16),
    )
}


def precision_plan(name: str) -> PrecisionPlan:
    """Return the plan of a precision by its name."""
    return _PLANS[name]

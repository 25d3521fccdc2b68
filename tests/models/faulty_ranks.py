"""A model that goes wrong on one rank of several, in the way that it is asked to."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch import nn

TOO_MUCH = 64 << 30


class _OutOfMemoryInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        torch.empty(TOO_MUCH, dtype=torch.uint8, device=grad.device)
        return grad


class Net(nn.Module):
    def __init__(self, fault: str, rank: int = 1) -> None:
        super().__init__()
        self.fault = fault if int(os.environ.get("RANK", "0")) == rank else ""
        self.first = nn.Linear(64, 256)
        self.last = nn.Linear(257 if self.fault == "differs" else 256, 10)
        if self.fault == "load":
            self.register_buffer("large", torch.empty(TOO_MUCH, dtype=torch.uint8, device="cuda"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault == "forward":
            torch.empty(TOO_MUCH, dtype=torch.uint8, device=x.device)
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hangs":
            time.sleep(1000)
        y = self.first(x)
        if self.fault == "differs":
            y = nn.functional.pad(y, (0, 1))
        if self.fault == "backward":
            y = _OutOfMemoryInBackward.apply(y)
        return self.last(y)


class Hungry(torch.optim.SGD):
    """An optimizer whose state takes too much on rank 1."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step(closure)
        if os.environ.get("RANK") == "1":
            torch.empty(TOO_MUCH, dtype=torch.uint8, device="cuda")

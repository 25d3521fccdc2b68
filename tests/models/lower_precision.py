"""Models whose weights are not all float32, and one that leaves a tensor on the CPU."""

from __future__ import annotations

import torch
from torch import nn


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).bfloat16()


class ForgottenScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.scale = torch.ones(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale

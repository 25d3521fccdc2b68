"""Models whose steps depend on the steps before: every seventh needs more memory."""

from __future__ import annotations

import torch
from torch import nn

STEPS = 0


class Seventh(nn.Module):
    """Counts its steps.

    Args:
        where: what counts: `attribute`, `buffer`, `global`, `class` or `batch_norm`.
    """

    steps = 0

    def __init__(self, where: str = "attribute") -> None:
        super().__init__()
        self.where = where
        self.layer = nn.Linear(256, 256)
        self.norm = nn.BatchNorm1d(256) if where == "batch_norm" else nn.Identity()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.number = 0
        self.past: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(self.norm(x))
        if self._next() % 7 == 0:
            y = y + sum(torch.relu(y * i) for i in range(20))
        return y

    def _next(self) -> int:
        global STEPS
        if self.where == "attribute":
            self.number += 1
            return self.number
        if self.where == "buffer":
            self.count += 1
            return int(self.count)
        if self.where == "global":
            STEPS += 1
            return STEPS
        if self.where == "class":
            Seventh.steps += 1
            return Seventh.steps
        return int(self.norm.num_batches_tracked)


class Remembers(nn.Module):
    """Keeps its last batches."""

    def __init__(self, batches: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256)
        self.batches = batches
        self.past: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.past = [*self.past, x.detach().clone()][-self.batches :]
        y: torch.Tensor = self.layer(x)
        return y

"""Steps that are not all alike, though the second and the third are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class KeepsBatches(nn.Module):
    """Keeps the last few batches."""

    count = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.batches = []

    def forward(self, x):
        self.batches = [*self.batches, x.detach().clone()][-self.count :]
        return self.layer(x[:, :16])


class KeepsTheLastBatch(KeepsBatches):
    count = 1


class KeepsTwoBatches(KeepsBatches):
    count = 2


class KeepsThreeBatches(KeepsBatches):
    count = 3


class KeepsTenBatches(KeepsBatches):
    count = 10


class Wide(nn.Sequential):
    """Has 64 MiB of parameters."""

    def __init__(self):
        super().__init__(nn.Linear(16, 1 << 12), nn.Linear(1 << 12, 1 << 12))


class Lazy(nn.Module):
    """Does more in every so-manieth step, as lazy regularisation does."""

    every = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.step = 0

    def forward(self, x):
        self.step += 1
        y = self.layer(x)
        if self.step % self.every == 0:
            y = y + sum(F.gelu(y * (i + 1)) for i in range(10))
        return y


class EveryFourth(Lazy):
    every = 4


class EveryNinth(Lazy):
    every = 9


class EverySixteenth(Lazy):
    every = 16


class TenthState(torch.optim.SGD):
    """Makes its state in the tenth step."""

    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 10:
            for group in self.param_groups:
                for parameter in group["params"]:
                    self.state[parameter]["average"] = torch.zeros_like(parameter)
        return super().step(closure)


class SampleBySample(nn.Module):
    """Runs a layer for each sample by itself: a larger batch has more operators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.layer(sample).relu() for sample in x])

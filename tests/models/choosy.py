"""Models that accept some batch sizes only."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn


class Groups(nn.Module):
    """Statistics over groups of samples, as the discriminators of GANs have them."""

    def __init__(self, group: int = 4) -> None:
        super().__init__()
        self.group = group
        self.body = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(65, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.body(images).relu()
        n, c, h, w = x.shape
        groups = x.reshape(min(self.group, n), -1, c, h, w)
        spread = (groups - groups.mean(0)).square().mean(0).mean((1, 2, 3), keepdim=True)
        more = spread.repeat(min(self.group, n), 1, h, w)
        return self.head(torch.cat([x, more], 1).mean((2, 3)))


class Clips(nn.Module):
    """Eight frames make a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = self.body(frames).mean((2, 3))
        return self.head(x.view(x.shape[0] // 8, 8, 64).mean(1))


class Queue(nn.Module):
    """A queue of negative samples, which the batch has to divide; where it is written goes on."""

    def __init__(self, length: int = 4096) -> None:
        super().__init__()
        self.length, self.position = length, 0
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 128))
        self.register_buffer("queue", torch.randn(128, length))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        keys = self.encoder(images)
        n = len(keys)
        assert self.length % n == 0
        scores = keys @ self.queue.clone()
        self.queue[:, self.position : self.position + n] = keys.detach().T
        self.position = (self.position + n) % self.length
        return scores.logsumexp(1).mean()


class OneSize(nn.Module):
    """A state that was made for one batch size."""

    def __init__(self, size: int = 24) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 64)
        self.register_buffer("state", torch.zeros(size, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.state


class AtMost100(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 100:
            raise ValueError("too many samples for me")
        return self.layer(x)


class Misshapen(nn.Module):
    """Runs at no batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class FailsIn(nn.Module):
    """Fails in one precision: raises, leaks or dies there."""

    def __init__(self, half: bool, how: str = "raises") -> None:
        super().__init__()
        self.half, self.how = half, how
        self.layer = nn.Linear(1024, 1024)
        self.kept: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if (y.dtype != torch.float32) == self.half:
            if self.how == "raises":
                raise RuntimeError("not in this precision")
            if self.how == "dies" and len(x) > 5:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "leaks":
                self.kept.append(y)
        return y


class ValuesAbove200(nn.Module):
    """Leaves out rows by their values, where there are many."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out[out.sum(1) > 0] if len(x) > 200 else out

"""Models whose memory grows with the square of a size that is no batch size, and a model with a limit."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 500


class ConvNet(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


class Patches(nn.Module):
    """Takes images whose size is a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 256, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 16, 16, w // 16, 16).transpose(3, 4).reshape(n, -1, c * 256)
        return self.layer(x).mean(1)


class Decoder(nn.Module):
    """Attention that keeps its scores: of quadratic memory.

    Args:
        limit: the most tokens that it takes.
    """

    def __init__(self, limit: int = 1 << 20) -> None:
        super().__init__()
        self.limit = limit
        self.embed = nn.Embedding(VOCABULARY, 64)
        self.qkv = nn.Linear(64, 192)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[1] <= self.limit, f"{ids.shape[1]} tokens are more than {self.limit}"
        x = self.embed(ids)
        query, key, value = self.qkv(x).chunk(3, -1)
        scores = functional.softmax(query @ key.transpose(1, 2), -1)
        return self.head(x + scores @ value)


def tokens(batch_size: int, device: torch.device, seq_len: int) -> torch.Tensor:
    return torch.zeros(batch_size, seq_len, dtype=torch.int64, device=device)


def few_tokens(batch_size: int, device: torch.device, seq_len: int) -> torch.Tensor:
    """Fewer samples than are asked for."""
    return torch.zeros(3, seq_len, dtype=torch.int64, device=device)

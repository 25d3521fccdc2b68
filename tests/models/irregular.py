"""A step whose memory depends on the batch size in other ways than by so many bytes for each sample."""

from __future__ import annotations

import math
import random

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

GROWS = {
    "padded": lambda n, k: 4096 * k * -(-n // k),
    "a part": lambda n, k: 65536 * (n // k),
    "root": lambda n, k: 65536 * k * math.isqrt(n),
    "logarithm": lambda n, k: 262144 * k * n.bit_length(),
    "power of two": lambda n, _: 8192 << (n - 1).bit_length(),
    "one and a half": lambda n, k: 512 * k * int(n**1.5),
    "square": lambda n, _: 4096 * n * n,
    "cube": lambda n, _: 16 * n**3,
    "pairs": lambda n, _: 2048 * n * (n - 1),
    "threshold": lambda n, k: 1 << 26 if n >= 20 * k else 4096,
    "floor": lambda n, k: 65536 * max(n - 30 * k, 1),
    "cap": lambda n, k: 65536 * min(n, 30 * k),
}
"""Bytes of a tensor by the batch size and a parameter; none of them falls."""

FALLS = {
    "parity": lambda n, k: 65536 * k * n * (n % 2),
    "remainder": lambda n, k: 1 << 22 * (n % k),
    "share": lambda n, k: (1 << 28) // n * k,
}


class Irregular(nn.Module):
    """Keeps a few tensors of odd sizes for the backward pass, and takes another path from a size on.

    Args:
        seed: decides which; a negative one, that no size falls where the batch grows.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        choose = random.Random(seed)
        kinds = GROWS if seed < 0 else {**GROWS, **FALLS}
        names = choose.sample(sorted(kinds), k=choose.randint(1, 3))
        self.sizes = [(kinds[name], choose.randint(2, 12)) for name in names]
        self.turn = choose.choice([0, 40, 200])
        self.layer = nn.Linear(256, 256)

    def forward(self, x):
        y = self.layer(x.flatten(1)).relu()
        n = len(x)
        for size, parameter in self.sizes:
            kept = torch.ones(max(1, size(n, parameter) // 4), device=x.device)
            y = y + (kept * self.layer.bias[0]).mean()
        return y + F.gelu(y * 2) * F.gelu(y * 3) if self.turn and n >= self.turn else y


class Triplet(nn.Module):
    """The batch-all triplet loss has a tensor of every three samples."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        z = self.layer(x)
        d = (z.unsqueeze(1) - z.unsqueeze(0)).pow(2).sum(-1)
        return (d.unsqueeze(2) - d.unsqueeze(1) + 1.0).relu().mean()

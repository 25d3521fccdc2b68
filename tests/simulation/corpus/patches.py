"""Vision without (or with few) convolutions: attention and mixing over patches."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import case
from tests.simulation.corpus.vision import drop_path
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Attention(nn.Module):
    """Attention of the usual kind; `fused` picks the kernel of torch, else softmax by hand."""

    def __init__(self, width: int, heads: int, *, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            y = F.dropout(weights.softmax(-1), 0.1, self.training) @ v
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, *, fused: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = Attention(width, heads, fused=fused)
        self.mlp = nn.Sequential(
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1)),
            *(nn.Linear(4 * width, width), nn.Dropout(0.1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + drop_path(self.attend(self.norm1(x)), 0.1)
        return x + drop_path(self.mlp(self.norm2(x)), 0.1)


class Vit(nn.Module):
    """A vision transformer with a class token and learnt positions."""

    def __init__(
        self, size: int = 96, width: int = 192, depth: int = 3, fused: bool = True
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (size // 16) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64, fused=fused) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class WindowAttention(nn.Module):
    """Attention inside windows, shifted, with a table of relative positions (Swin)."""

    def __init__(self, width: int, heads: int, window: int, shift: int, size: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        axis = torch.arange(window)
        places = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
        distance = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", distance[..., 0] * (2 * window - 1) + distance[..., 1])
        regions = torch.zeros(1, size, size, 1)
        slices = (slice(0, -window), slice(-window, -shift or None), slice(-shift, None))
        for count, (rows, columns) in enumerate((r, c) for r in slices for c in slices):
            regions[:, rows, columns] = count
        ids = self._windows(regions).squeeze(-1)
        mask = ids[:, None] - ids[:, :, None]
        mask = mask.masked_fill(mask != 0, -100.0)
        self.register_buffer("mask", mask if shift else None)

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        n, height, width, c = x.shape
        x = x.view(n, height // self.window, self.window, width // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window**2, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, height, width, c = x.shape
        y = self.norm(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self._windows(y)
        b, length, _ = y.shape
        qkv = self.qkv(y).reshape(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(length, length, -1)
        weights = weights + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.mask is not None:
            weights = weights.view(n, -1, self.heads, length, length)
            weights = (weights + self.mask.unsqueeze(1).unsqueeze(0)).view(b, -1, length, length)
        y = self.out((weights.softmax(-1) @ v).transpose(1, 2).reshape(b, length, c))
        y = y.view(n, height // self.window, width // self.window, self.window, self.window, c)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, c)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + y


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 96, 4, 4)
        self.stage1 = nn.Sequential(
            WindowAttention(96, 3, 7, 0, 28), WindowAttention(96, 3, 7, 3, 28)
        )
        self.norm, self.reduce = nn.LayerNorm(384), nn.Linear(384, 192, bias=False)
        self.stage2 = WindowAttention(192, 6, 7, 3, 14)
        self.head = nn.Linear(192, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage1(self.patch(x).permute(0, 2, 3, 1))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.stage2(self.reduce(self.norm(torch.cat(corners, -1))))
        return self.head(x.mean((1, 2)))


class Mixer(nn.Module):
    """Multi-layer perceptrons across patches and across channels."""

    def __init__(self, patches: int = 36, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        mlp = lambda size, hidden: nn.Sequential(  # noqa: E731
            nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.across = nn.ModuleList(mlp(patches, 128) for _ in range(depth))
        self.along = nn.ModuleList(mlp(width, 1024) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        norms = iter(self.norms)
        for across, along in zip(self.across, self.along, strict=True):
            x = x + across(next(norms)(x).transpose(1, 2)).transpose(1, 2)
            x = x + along(next(norms)(x))
        return self.head(x.mean(1))


class Detr(nn.Module):
    """Queries that look for objects through torch's own transformer."""

    def __init__(self, width: int = 128, queries: int = 50) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.transformer = nn.Transformer(width, 4, 2, 2, 512, batch_first=True)
        self.queries = nn.Parameter(torch.rand(queries, width))
        self.rows, self.columns = (nn.Parameter(torch.rand(16, width // 2)) for _ in range(2))
        self.classify, self.box = nn.Linear(width, 21), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.patch(x)
        n, _, height, width = x.shape
        position = torch.cat(
            [
                self.columns[:width].unsqueeze(0).repeat(height, 1, 1),
                self.rows[:height].unsqueeze(1).repeat(1, width, 1),
            ],
            -1,
        ).flatten(0, 1)
        h = self.transformer(
            position + 0.1 * x.flatten(2).transpose(1, 2),
            self.queries.unsqueeze(0).expand(n, -1, -1),
        )
        return self.classify(h), self.box(h).sigmoid()


_case = partial(case, "patches", __name__, kind="attention")

CASES = (
    _case("vit", "Vit", "3,96,96", loss="cross-entropy", batch_sizes=(8, 32)),
    _case("vit_softmax", "Vit", "3,96,96", args={"fused": False}, batch_sizes=(8,)),
    _case("swin", "Swin", "3,112,112"),
    _case("mixer", "Mixer", "3,96,96", batch_sizes=(8,)),
    _case("detr", "Detr", "3,128,128"),
    _case("vit_inference", "Vit", "3,96,96", mode="infer", batch_sizes=(8,)),
)

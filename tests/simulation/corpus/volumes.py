"""Three-dimensional data: volumes and video."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from tests.simulation.corpus.case import case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class UNet3d(nn.Module):
    """A U-Net over volumes, with instance normalisation as in nnU-Net."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv3d(before, after, 3, padding=1),
                *(nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01, inplace=True)),
            )

        widths = [width << level for level in range(depth + 1)]
        pairs = list(itertools.pairwise(widths))
        self.stem = block(1, width)
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(block(2 * a, a) for a, _ in reversed(pairs))
        self.out = nn.Conv3d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skipped = self.stem(x), []
        for down in self.down:
            skipped.append(x)
            x = down(F.max_pool3d(x, 2))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skipped.pop(), up(x)], 1))
        return self.out(x)


def c3d() -> nn.Module:
    """Plain three-dimensional convolutions over video."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv3d(before, after, 3, padding=1), nn.BatchNorm3d(after), nn.ReLU(True)]
        layers.append(nn.MaxPool3d((1, 2, 2) if before == 3 else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, 10))


def c3d_channels_last() -> nn.Module:
    """The same in channels_last_3d."""
    return c3d().to(memory_format=torch.channels_last_3d)


def clips_channels_last(batch_size: int, device: torch.device) -> torch.Tensor:
    """Video in channels_last_3d."""
    clips = torch.randn(batch_size, 3, 8, 48, 48, device=device)
    return clips.contiguous(memory_format=torch.channels_last_3d)


class R2Plus1d(nn.Module):
    """Convolutions in space and in time, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(3, 45, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.time = nn.Conv3d(45, 64, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norms = nn.ModuleList((nn.BatchNorm3d(45), nn.BatchNorm3d(64)))
        self.out = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norms[0](self.space(x)))
        x = F.relu(self.norms[1](self.time(x)))
        return self.out(x.mean((2, 3, 4)))


class Tubelets(nn.Module):
    """Attention over tubelets, first in space, then in time (ViViT)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.patch = nn.Conv3d(3, width, (2, 16, 16), (2, 16, 16))
        layer = partial(nn.TransformerEncoderLayer, width, 4, 256, batch_first=True)
        self.space, self.time = layer(), layer()
        self.out = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x)
        n, c, time, height, width = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(n * time, height * width, c)
        x = self.space(x).mean(1).view(n, time, c)
        return self.out(self.time(x).mean(1))


_case = partial(case, "volumes", __name__, kind="convolutional", batch_sizes=(2,))

CASES = (
    _case("unet3d", "UNet3d", "1,32,48,48", loss="cross-entropy"),
    _case("c3d", "c3d", "3,8,48,48", loss="cross-entropy"),
    _case(
        "c3d_channels_last",
        "c3d_channels_last",
        batch_fn=":clips_channels_last",
        precisions=("fp32", "amp-bf16"),
    ),
    _case("r2plus1d", "R2Plus1d", "3,8,56,56", precisions=("fp32", "amp-fp16")),
    _case("tubelets", "Tubelets", "3,8,64,64", kind="attention"),
)

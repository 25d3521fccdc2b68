"""A model to try bsfind on: `bsfind run bsfind.demo:SmallResNet --input-shape 3,96,96`."""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, out_channels, height / stride, width / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Classifies images of shape (3, height, width)."""

    def __init__(self, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 4 * width, 2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return class scores of shape (batch, classes)."""
        scores: torch.Tensor = self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return scores

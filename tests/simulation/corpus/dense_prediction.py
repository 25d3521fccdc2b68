"""A value for every pixel, or boxes: segmentation, restoration, diffusion, detection."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
from tests.simulation.corpus.case import case
from tests.simulation.corpus.vision import conv_bn
from torch import nn
from torch.nn import functional as F  # noqa: N812


class UNet(nn.Module):
    """Skip connections between a contracting and an expanding path."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        pairs = list(itertools.pairwise(widths))
        self.stem = nn.Sequential(conv_bn(3, width), conv_bn(width, width))
        self.down = nn.ModuleList(nn.Sequential(conv_bn(a, b), conv_bn(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(conv_bn(2 * a, a) for a, _ in reversed(pairs))
        self.out = nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        skipped = []
        for down in self.down:
            skipped.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skipped.pop(), up(x)], 1))
        return self.out(x)


def dice_loss(output: torch.Tensor) -> torch.Tensor:
    """Soft Dice between the classes' probabilities and a target made on the spot."""
    probability = output.softmax(1)
    target = F.one_hot(output.detach().argmax(1), output.shape[1]).movedim(-1, 1).float()
    overlap = (probability * target).sum((2, 3))
    total = probability.sum((2, 3)) + target.sum((2, 3))
    return 1 - (2 * overlap / (total + 1e-6)).mean()


class DeepLab(nn.Module):
    """Dilated convolutions at several rates, and bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 3, stride=2), conv_bn(64, 128, 3, stride=2))
        self.rates = nn.ModuleList(
            conv_bn(128, 64, 3, padding=rate, dilation=rate) for rate in (1, 6, 12)
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(128, 64, 1), nn.ReLU())
        self.out = nn.Conv2d(256, 21, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        size = x.shape[-2:]
        x = self.stem(x)
        pooled = F.interpolate(self.pooled(x), x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.out(torch.cat([*(branch(x) for branch in self.rates), pooled], 1))
        return {"out": F.interpolate(x, size, mode="bilinear", align_corners=False), "aux": x}


class SuperResolution(nn.Module):
    """Residual blocks without normalisation, and a pixel shuffle (EDSR)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.PReLU(width),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(3)
        )
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = first = self.head(x)
        for block in self.body:
            x = x + block(x) * 0.1
        return self.out(self.up(x + first))


class TimeBlock(nn.Module):
    """A residual block that is told the time step of a diffusion process."""

    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)
        )
        self.time = nn.Linear(time, 2 * after)
        self.norm = nn.GroupNorm(8, after)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        h = self.second(F.silu(self.norm(h) * (1 + scale) + shift))
        return h + self.shortcut(x)


class PixelAttention(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(8, width), heads
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, -1)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(n, c, height, width))


class Diffusion(nn.Module):
    """The noise predictor of a diffusion model: U-Net with time embedding and attention."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(width, 256), nn.SiLU(), nn.Linear(256, 256))
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = TimeBlock(width, 2 * width, 256)
        self.shrink = nn.Conv2d(2 * width, 2 * width, 3, 2, 1)
        self.middle, self.attend = TimeBlock(2 * width, 2 * width, 256), PixelAttention(2 * width)
        self.up = TimeBlock(4 * width, width, 256)
        self.out = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)
        )
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = torch.randint(0, 1000, (x.shape[0],), device=x.device)
        noise = torch.randn_like(x)
        level = (step.float() / 1000)[:, None, None, None]
        noisy = (1 - level).sqrt() * x + level.sqrt() * noise
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=x.device) / half)
        angles = step[:, None].float() * frequencies[None]
        time = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        x = self.down(self.stem(noisy), time)
        y = self.attend(self.middle(self.shrink(x), time))
        y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        return F.mse_loss(self.out(self.up(torch.cat([x, y], 1), time)), noise)


class Vae(nn.Module):
    """A variational autoencoder: sampling in the middle, a loss of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            *(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * 16 * 16, 256)),
        )
        self.decode = nn.Sequential(
            *(nn.Linear(128, 64 * 16 * 16), nn.Unflatten(1, (64, 16, 16)), nn.ReLU()),
            *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Sigmoid()),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encode(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp(), 1)
        return F.mse_loss(self.decode(z), x) + 1e-3 * divergence.mean()


class FeaturePyramid(nn.Module):
    """A one-stage detector: a pyramid of features, shared heads, focal and L1 losses."""

    def __init__(self, classes: int = 20, anchors: int = 9) -> None:
        super().__init__()
        self.classes = classes
        self.levels = nn.ModuleList(
            conv_bn(a, b, 3, stride=2) for a, b in ((3, 64), (64, 128), (128, 256))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(c, 64, 1) for c in (64, 128, 256))
        self.classify = nn.Conv2d(64, anchors * classes, 3, padding=1)
        self.locate = nn.Conv2d(64, anchors * 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = []
        for level, lateral in zip(self.levels, self.lateral, strict=True):
            x = level(x)
            features.append(lateral(x))
        for index in (1, 0):
            larger = F.interpolate(features[index + 1], scale_factor=2)
            features[index] = features[index] + larger
        scores, boxes = [], []
        for feature in features:
            n = feature.shape[0]
            scores.append(self.classify(feature).permute(0, 2, 3, 1).reshape(n, -1, self.classes))
            boxes.append(self.locate(feature).permute(0, 2, 3, 1).reshape(n, -1, 4))
        scores, boxes = torch.cat(scores, 1), torch.cat(boxes, 1)
        target = torch.zeros_like(scores)
        cross = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        probability = torch.sigmoid(scores)
        weight = (1 - probability) * target + probability * (1 - target)
        focal = (cross * weight**2).mean()
        return focal + F.smooth_l1_loss(boxes, torch.zeros_like(boxes), beta=0.1)


_case = partial(case, "dense_prediction", __name__, kind="convolutional")

CASES = (
    _case("unet", "UNet", "3,96,96", loss="cross-entropy"),
    _case("unet_dice", "UNet", "3,64,64", loss=":dice_loss", precisions=("fp32", "amp-bf16")),
    _case("deeplab", "DeepLab", "3,96,96"),
    _case("super_resolution", "SuperResolution", "3,48,48", loss="mse"),
    _case("diffusion", "Diffusion", "3,32,32", batch_sizes=(4, 8)),
    _case("vae", "Vae", "3,64,64", batch_sizes=(8,)),
    _case("detector", "FeaturePyramid", "3,128,128", batch_sizes=(2,)),
)

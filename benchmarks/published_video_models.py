"""Networks for video of the mmaction2 model zoo (v0.24.1), written anew from its configurations.

Inputs are (batch, segments, channels, height, width) of the 2-D networks, and (batch, 1, channels, frames,
height, width) of the 3-D ones: the model zoo folds the first two dimensions. Activations are in place, as
in its layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from benchmarks.torchvision_import import import_torchvision
from torch import Tensor, nn

Size3 = tuple[int, int, int]

__all__ = ["c3d", "i3d", "r2plus1d", "slowfast", "slowonly", "tsm", "tsn"]


class Recognizer(nn.Module):
    """A backbone, its pooled features, dropout, and a classifier."""

    def __init__(self, backbone: nn.Module, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return class scores, (batch, classes)."""
        features: Tensor | tuple[Tensor, ...] = self.backbone(clips.flatten(0, 1))
        if isinstance(features, tuple):
            pooled = torch.cat([self.pool(part) for part in reversed(features)], dim=1)
        else:
            pooled = self.pool(features) if features.ndim == 5 else features
        scores: Tensor = self.classifier(self.dropout(pooled).flatten(1))
        return scores


# ---------------------------------------------------------------------------------- frames, one by one


class Segments(nn.Module):
    """ResNet-50 on each segment of a video.

    Args:
        average_first: average the features of the segments (TSN), not their scores (TSM).
        shifted: move an eighth of the channels to the next segment and another to the last one, before the
            first convolution of each block.
        segments: number of segments.
        dropout: of the classifier.
    """

    def __init__(
        self, *, average_first: bool, shifted: bool, segments: int, dropout: float
    ) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models import resnet50

        self.backbone = resnet50(weights=None)
        self.backbone.fc = nn.Identity()
        if shifted:
            for name in ("layer1", "layer2", "layer3", "layer4"):
                for block in getattr(self.backbone, name):
                    block.conv1 = nn.Sequential(Shift(segments), block.conv1)
        self.average_first = average_first
        self.segments = segments
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2048, 400)

    def forward(self, frames: Tensor) -> Tensor:
        """Return class scores, (batch, classes)."""
        features = self.backbone(frames.flatten(0, 1))
        if self.average_first:
            features = features.view(-1, self.segments, 2048).mean(dim=1)
            return self.classifier(self.dropout(features))
        scores = self.classifier(self.dropout(features))
        return scores.view(-1, self.segments, 400).mean(dim=1)


class Shift(nn.Module):
    """Shifts channels between neighbouring segments."""

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.segments = segments

    def forward(self, x: Tensor) -> Tensor:
        """Return the shifted features."""
        rows = x.view(-1, self.segments, x.shape[1], x.shape[2] * x.shape[3])
        fold = x.shape[1] // 8
        left, right, rest = rows[:, :, :fold], rows[:, :, fold : 2 * fold], rows[:, :, 2 * fold :]
        left = torch.cat((left[:, 1:], (left - left)[:, :1]), dim=1)
        right = torch.cat(((right - right)[:, :1], right[:, :-1]), dim=1)
        return torch.cat((left, right, rest), dim=2).view(x.shape)


def tsn(segments: int) -> nn.Module:
    """TSN with ResNet-50."""
    return Segments(average_first=True, shifted=False, segments=segments, dropout=0.4)


def tsm(segments: int) -> nn.Module:
    """TSM with ResNet-50."""
    return Segments(average_first=False, shifted=True, segments=segments, dropout=0.5)


# ----------------------------------------------------------------------------- convolutions over time


def _convolution(
    inputs: int, outputs: int, kernel: Size3, stride: Size3 = (1, 1, 1), *, factored: bool = False
) -> nn.Module:
    """Return a 3-D convolution without bias, or its two factors: over space, then over time."""
    padding = tuple(k // 2 for k in kernel)
    if not factored:
        return nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
    area = kernel[1] * kernel[2]
    middle = int(3 * inputs * outputs * area / (inputs * area + 3 * outputs))
    return nn.Sequential(
        nn.Conv3d(
            inputs, middle, (1, *kernel[1:]), (1, *stride[1:]), (0, *padding[1:]), bias=False
        ),
        nn.BatchNorm3d(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(
            middle, outputs, (kernel[0], 1, 1), (stride[0], 1, 1), (padding[0], 0, 0), bias=False
        ),
    )


def _layer(
    inputs: int,
    outputs: int,
    kernel: Size3,
    stride: Size3 = (1, 1, 1),
    *,
    factored: bool = False,
    activated: bool = True,
) -> nn.Sequential:
    """Return a convolution with batch normalisation and, perhaps, an activation."""
    parts = [_convolution(inputs, outputs, kernel, stride, factored=factored)]
    parts.append(nn.BatchNorm3d(outputs))
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if activated else []))


class Residual(nn.Module):
    """A residual block: some layers, and a shortcut that has a layer if the sizes differ."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum."""
        out = self.body(x)
        summed: Tensor = self.relu(out + (x if self.shortcut is None else self.shortcut(x)))
        return summed


def _bottleneck(inputs: int, planes: int, stride: int, over_time: bool, shortcut: bool) -> Residual:
    body = nn.Sequential(
        _layer(inputs, planes, (3 if over_time else 1, 1, 1)),
        _layer(planes, planes, (1, 3, 3), (1, stride, stride)),
        _layer(planes, 4 * planes, (1, 1, 1), activated=False),
    )
    side = _layer(inputs, 4 * planes, (1, 1, 1), (1, stride, stride), activated=False)
    return Residual(body, side if shortcut else None)


def _factored_block(inputs: int, planes: int, stride: int, shortcut: bool) -> Residual:
    strides = (stride, stride, stride)
    body = nn.Sequential(
        _layer(inputs, planes, (3, 3, 3), strides, factored=True),
        _layer(planes, planes, (3, 3, 3), factored=True, activated=False),
    )
    side = _layer(inputs, planes, (1, 1, 1), strides, factored=True, activated=False)
    return Residual(body, side if shortcut else None)


class Pathway(nn.Module):
    """A ResNet-50 over time: the stem and four stages of bottleneck blocks.

    Args:
        stem: kernel of the first convolution.
        stem_stride: its stride over time, and that of the pooling behind it.
        over_time: whether the first convolution of each block goes over time, by stage and block.
        width: channels of the stem.
        joined: channels that another pathway adds to the input of each stage.
        halved: pool pairs of frames behind the first stage.
    """

    def __init__(
        self,
        stem: Size3,
        over_time: Sequence[Sequence[int]],
        *,
        stem_stride: int = 1,
        width: int = 64,
        joined: Sequence[int] = (0, 0, 0, 0),
        halved: bool = False,
    ) -> None:
        super().__init__()
        self.stem = _layer(3, width, stem, (stem_stride, 2, 2))
        self.pool = nn.MaxPool3d((1, 3, 3), (stem_stride, 2, 2), (0, 1, 1))
        self.halve = nn.MaxPool3d((2, 1, 1), (2, 1, 1)) if halved else nn.Identity()
        stages: list[nn.Sequential] = []
        inputs = width
        for i, flags in enumerate(over_time):
            planes = width << i
            blocks = [
                _bottleneck(inputs + joined[i], planes, 1 if i == 0 else 2, bool(flags[0]), True)
            ]
            inputs = 4 * planes
            blocks += [_bottleneck(inputs, planes, 1, bool(flag), False) for flag in flags[1:]]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last stage."""
        x = self.pool(self.stem(x))
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i == 0:
                x = self.halve(x)
        return x


_NEVER, _ALWAYS = (0,) * 6, (1,) * 6
_BLOCKS = (3, 4, 6, 3)
_LATE = tuple(
    flags[:n] for flags, n in zip((_NEVER, _NEVER, _ALWAYS, _ALWAYS), _BLOCKS, strict=True)
)


def slowonly() -> nn.Module:
    """SlowOnly with ResNet-50."""
    return Recognizer(Pathway((1, 7, 7), _LATE), 2048, 400, 0.5)


def i3d() -> nn.Module:
    """I3D with ResNet-50."""
    flags = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))
    return Recognizer(Pathway((5, 7, 7), flags, stem_stride=2, halved=True), 2048, 400, 0.5)


class SlowFast(nn.Module):
    """Two pathways: one of few frames, one of all frames with an eighth of the channels.

    Frames are taken with `interpolate`, which copies those of the fast pathway too.

    Args:
        rate: the slow pathway gets every `rate`-th frame.
    """

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate
        inputs = (8, 32, 64, 128)
        self.slow = Pathway((1, 7, 7), _LATE, joined=[2 * channels for channels in inputs])
        self.fast = Pathway((5, 7, 7), [_ALWAYS[:n] for n in _BLOCKS], width=8)
        self.lateral = nn.ModuleList(
            nn.Conv3d(channels, 2 * channels, (5, 1, 1), (rate, 1, 1), (2, 0, 0), bias=False)
            for channels in inputs
        )

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the slow and of the fast pathway."""
        slow = nn.functional.interpolate(clips, scale_factor=(1 / self.rate, 1.0, 1.0))
        slow = self.slow.pool(self.slow.stem(slow))
        fast = nn.functional.interpolate(clips, scale_factor=(1.0, 1.0, 1.0))
        fast = self.fast.pool(self.fast.stem(fast))
        for lateral, of_slow, of_fast in zip(
            self.lateral, self.slow.stages, self.fast.stages, strict=True
        ):
            slow = of_slow(torch.cat((slow, lateral(fast)), dim=1))
            fast = of_fast(fast)
        return slow, fast


def slowfast() -> nn.Module:
    """SlowFast 4x16 with ResNet-50."""
    return Recognizer(SlowFast(8), 2304, 400, 0.5)


class FactoredResNet(nn.Module):
    """R(2+1)D with 34 layers."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [_layer(3, 64, (3, 7, 7), (1, 2, 2), factored=True)]
        parts.append(nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        inputs = 64
        for i, blocks in enumerate(_BLOCKS):
            planes, stride = 64 << i, 1 if i == 0 else 2
            parts.append(_factored_block(inputs, planes, stride, i > 0))
            parts += [_factored_block(planes, planes, 1, False) for _ in range(blocks - 1)]
            inputs = planes
        self.parts = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the last stage."""
        features: Tensor = self.parts(x)
        return features


def r2plus1d() -> nn.Module:
    """R(2+1)D with 34 layers, and batch normalisation of one GPU."""
    return Recognizer(FactoredResNet(), 512, 400, 0.5)


def c3d() -> nn.Module:
    """C3D."""
    parts: list[nn.Module] = []
    inputs = 3
    for i, widths in enumerate(((64,), (128,), (256, 256), (512, 512), (512, 512))):
        for width in widths:
            parts += [nn.Conv3d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
        size = (1 if i == 0 else 2, 2, 2)
        parts.append(nn.MaxPool3d(size, size, (0, 1, 1) if i == 4 else 0))
    parts += [nn.Flatten(), nn.Linear(8192, 4096), nn.ReLU(), nn.Dropout(0.5)]
    parts += [nn.Linear(4096, 4096), nn.ReLU()]
    return Recognizer(nn.Sequential(*parts), 4096, 101, 0.5)

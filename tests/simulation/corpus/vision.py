"""Image models: the convolutional families."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.corpus.case import AMP, case
from torch import nn
from torch.nn import functional as F  # noqa: N812


def conv_bn(before: int, after: int, size: int = 3, **settings: int) -> nn.Sequential:
    """A convolution, its normalisation and an in-place activation."""
    settings.setdefault("padding", size // 2)
    return nn.Sequential(
        nn.Conv2d(before, after, size, bias=False, **settings),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


class Bottleneck(nn.Module):
    def __init__(self, before: int, after: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        inner = after // 4 * (2 if groups > 1 else 1)
        self.body = nn.Sequential(
            conv_bn(before, inner, 1),
            conv_bn(inner, inner, 3, stride=stride, groups=groups),
            nn.Conv2d(inner, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """Bottleneck blocks (ResNet; with groups ResNeXt)."""

    def __init__(self, width: int = 64, groups: int = 1, classes: int = 100) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, width, 7, stride=2), nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        before = width
        for level in range(3):
            after = 4 * width << level
            for index in range(2):
                stride = 2 if level and not index else 1
                layers.append(Bottleneck(before, after, stride, groups))
                before = after
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class Vgg(nn.Module):
    """Plain convolutions with biases, and large fully connected layers (VGG)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for after in (64, 64, 0, 128, 128, 0, 256, 256, 0):
            if after:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
                before = after
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d((4, 4))
        self.head = nn.Sequential(
            *(nn.Linear(4096, 1024), nn.ReLU(inplace=True), nn.Dropout(0.5)),
            *(nn.Linear(1024, 1024), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(1024, 10)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)), inplace=True))
        return x * torch.sigmoid(gate)


def drop_path(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Leave out whole samples of a residual branch (stochastic depth)."""
    keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)


class InvertedResidual(nn.Module):
    def __init__(self, before: int, after: int, stride: int, activation: type[nn.Module]) -> None:
        super().__init__()
        inner = 4 * before
        self.keeps_shape = stride == 1 and before == after
        self.body = nn.Sequential(
            *(nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), activation()),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            *(nn.BatchNorm2d(inner), activation(), SqueezeExcite(inner)),
            *(nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + drop_path(y, 0.1) if self.keeps_shape else y


class MobileNet(nn.Module):
    """Depthwise convolutions, squeeze and excitation, stochastic depth (MobileNet, EfficientNet)."""

    def __init__(self, activation: str = "SiLU") -> None:
        super().__init__()
        cls = getattr(nn, activation)
        widths = (32, 32, 48, 48, 96, 96)
        strides = (1, 2, 1, 2, 1)
        self.stem = nn.Sequential(conv_bn(3, 32, 3, stride=2))
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(a, b, stride, cls)
                for a, b, stride in zip(widths, widths[1:], strides, strict=False)
            )
        )
        self.head = nn.Sequential(
            *(conv_bn(96, 384, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Dropout(0.2), nn.Linear(384, 100)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


class DenseNet(nn.Module):
    """Concatenations of everything before."""

    def __init__(self, growth: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.layers = nn.ModuleList()
        width = 64
        for _ in range(layers):
            self.layers.append(
                nn.Sequential(
                    *(nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
                    nn.Conv2d(width, 4 * growth, 1, bias=False),
                    *(nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True)),
                    nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
                )
            )
            width += growth
        self.transition = nn.Sequential(nn.Conv2d(width, width // 2, 1), nn.AvgPool2d(2, 2))
        self.head = nn.Linear(width // 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.head(self.transition(torch.cat(features, 1)).mean((2, 3)))


class Inception(nn.Module):
    """Parallel branches with 1x7 and 7x1 kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 64, 3, stride=2), conv_bn(64, 128, 3))
        self.one = conv_bn(128, 96, 1)
        self.row = nn.Sequential(
            conv_bn(128, 64, 1),
            nn.Conv2d(64, 96, (1, 7), padding=(0, 3)),
            nn.Conv2d(96, 96, (7, 1), padding=(3, 0)),
        )
        self.five = nn.Sequential(conv_bn(128, 48, 1), conv_bn(48, 64, 5))
        self.pooled = nn.Sequential(
            nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv_bn(128, 32, 1)
        )
        self.head = nn.Linear(288, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([self.one(x), self.row(x), self.five(x), self.pooled(x)], 1)
        return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.reduce = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 64, 4, 4),
            *(ConvNextBlock(64) for _ in range(2)),
            nn.Conv2d(64, 128, 2, 2),
            *(ConvNextBlock(128) for _ in range(2)),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((-2, -1)))


class ShuffleNet(nn.Module):
    """Channels split, shuffled, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 64, 3, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_bn(32, 32, 1), conv_bn(32, 32, 3), conv_bn(32, 32, 1))
            for _ in range(3)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, block(changed)), 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x.mean((2, 3)))


class WeightStandardised(nn.Module):
    """Standardised weights with group normalisation and scaled residuals (NFNet, BiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(16, 64) for _ in range(4))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            weight = convolution.weight
            variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
            weight = (weight - mean) * torch.rsqrt(variance + 1e-5)
            x = x + 0.2 * F.relu(norm(F.conv2d(x, weight, convolution.bias, padding=1)))
        return self.head(x.mean((2, 3)))


class SpatialTransformer(nn.Module):
    """Resamples its input by a learnt affine map."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(
            *(nn.Conv2d(3, 16, 7, 2), nn.MaxPool2d(2), nn.ReLU(True)),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 6)),
        )
        self.body = nn.Sequential(conv_bn(3, 64, 3), conv_bn(64, 64, 3, stride=2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(self.locate(x).view(-1, 2, 3), list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, align_corners=False)
        return self.head(self.body(x).amax((2, 3)))


def dcgan_generator() -> nn.Module:
    """Transposed convolutions from a latent vector to an image (DCGAN)."""
    layers: list[nn.Module] = [nn.Unflatten(1, (128, 1, 1))]
    before = 128
    for after, stride, padding in ((256, 1, 0), (128, 2, 1), (64, 2, 1), (32, 2, 1)):
        layers += [
            nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
            *(nn.BatchNorm2d(after), nn.ReLU(True)),
        ]
        before = after
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())


def dcgan_discriminator() -> nn.Module:
    """Strided convolutions with spectral normalisation and leaky activations."""
    spectral = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        *(spectral(nn.Conv2d(3, 64, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)),
        *(spectral(nn.Conv2d(64, 128, 4, 2, 1)), nn.LeakyReLU(0.2, inplace=True)),
        *(nn.InstanceNorm2d(128, affine=True), nn.Conv2d(128, 1, 4), nn.Flatten()),
    )


_case = partial(case, "vision", __name__, kind="convolutional")

CASES = (
    _case("resnet", "ResNet", "3,96,96", loss="cross-entropy", batch_sizes=(4, 16)),
    _case("resnet_odd_size", "ResNet", "3,75,101", precisions=("fp32", "bf16"), batch_sizes=(3,)),
    _case("resnext", "ResNet", "3,96,96", args={"groups": 8}, precisions=("fp32", "amp-bf16")),
    _case("vgg", "Vgg", "3,64,64", loss="cross-entropy", optimizer="sgd", batch_sizes=(8,)),
    _case("efficientnet", "MobileNet", "3,96,96", precisions=("fp32", "amp-fp16")),
    _case(
        "mobilenet", "MobileNet", "3,64,64", args={"activation": "Hardswish"}, precisions=("fp32",)
    ),
    _case("densenet", "DenseNet", "3,96,96"),
    _case("inception", "Inception", "3,80,80", precisions=("fp32", "amp-fp16")),
    _case("convnext", "ConvNext", "3,96,96", precisions=("fp32", "amp-bf16")),
    _case("shufflenet", "ShuffleNet", "3,96,96", precisions=("fp32", "amp-fp16")),
    _case("nfnet", "WeightStandardised", "3,96,96"),
    _case("spatial_transformer", "SpatialTransformer", "3,64,64"),
    _case("gan_generator", "dcgan_generator", "128", loss="mse", batch_sizes=(16,)),
    _case("gan_discriminator", "dcgan_discriminator", "3,64,64", precisions=("fp32", *AMP)),
    _case("resnet_inference", "ResNet", "3,96,96", mode="infer", batch_sizes=(8,)),
)

"""Every layer family of torch.nn, side by side on one input.

Each network applies its layers to the same input and sums the means: a layer whose memory is
wrong shows by itself, not through what it feeds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tests.simulation.corpus.case import AMP, Case, case
from torch import nn

Layer = Callable[[torch.Tensor], torch.Tensor]


class SideBySide(nn.Module):
    """Applies layers to one activation that a gradient flows back to.

    Args:
        layers: each applied to the same tensor.
        channels: of the input; a 1x1 map of them comes first, so that inputs need gradients.
    """

    def __init__(self, layers: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = [1] * x.dim()
        shape[1 if x.dim() > 2 else -1] = -1
        h = x * self.weight.view(shape)
        total = 0.0
        for layer in self.layers:
            y = layer(h)
            y = y[0] if isinstance(y, tuple) else y
            total = total + y.float().mean()
        return total


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Layer) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_CHANNELS = 32


def convolutions(dimensions: int) -> nn.Module:
    """Sizes, strides, paddings, dilation, groups."""
    conv = partial(_CONV[dimensions], _CHANNELS)
    return SideBySide(
        [
            *(
                conv(64, 3),
                conv(64, 3, stride=2, padding=1),
                conv(48, 1),
                conv(64, 5, padding="same"),
            ),
            *(conv(64, 3, dilation=2), conv(64, 3, groups=4, bias=False), conv(32, 4, 4)),
            *(conv(17, 3, padding=1), conv(64, 3, padding=1, padding_mode="circular")),
            conv(64, 3, padding=1, padding_mode="reflect"),
        ],
        _CHANNELS,
    )


def depthwise(dimensions: int) -> nn.Module:
    """One filter for each channel."""
    conv = partial(_CONV[dimensions], _CHANNELS, groups=_CHANNELS)
    return SideBySide([conv(32, 3, padding=1), conv(64, 5, stride=2), conv(32, 3, bias=False)], 32)


def transposed(dimensions: int) -> nn.Module:
    """Transposed convolutions."""
    conv = partial(_TRANSPOSED[dimensions], _CHANNELS)
    return SideBySide(
        [
            *(conv(16, 2, 2), conv(24, 3, 2, 1, output_padding=1), conv(32, 3, groups=4)),
            conv(16, 4, 2, 1, bias=False),
        ],
        _CHANNELS,
    )


def pooling(dimensions: int) -> nn.Module:
    """Pooling of every kind."""
    d = f"{dimensions}d"
    make = lambda name, *args, **kwargs: getattr(nn, name + d)(*args, **kwargs)  # noqa: E731
    layers = [
        *(make("MaxPool", 2), make("MaxPool", 3, 2, 1), make("AvgPool", 2)),
        *(make("AvgPool", 3, 2, 1), make("AdaptiveAvgPool", 1), make("AdaptiveAvgPool", 5)),
        *(make("AdaptiveMaxPool", 1), make("AdaptiveMaxPool", 3), make("LPPool", 2, 3)),
    ]
    if dimensions > 1:
        layers.append(make("FractionalMaxPool", 3, output_ratio=0.5))
    return SideBySide([*layers, Unpool(dimensions)], _CHANNELS)


class Unpool(nn.Module):
    """The largest values, and back to their places."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{dimensions}d")(2, return_indices=True)
        self.unpool = getattr(nn, f"MaxUnpool{dimensions}d")(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, indices = self.pool(x)
        return self.unpool(values, indices, output_size=x.shape)


def padding(dimensions: int) -> nn.Module:
    """Paddings of every kind."""
    d = f"{dimensions}d"
    kinds = ("ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad")
    layers = [getattr(nn, kind + d)(2) for kind in kinds]
    return SideBySide([*layers, getattr(nn, f"ConstantPad{d}")(1, 3.5)], _CHANNELS)


def activations(first: bool) -> nn.Module:
    """Activations, half of them at a time."""
    names = (
        *("ELU", "Hardshrink", "Hardsigmoid", "Hardtanh", "Hardswish", "LeakyReLU", "LogSigmoid"),
        *("PReLU", "ReLU", "ReLU6", "RReLU", "SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish"),
        *("Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "GLU", "Softmin", "Softmax"),
        *("Softmax2d", "LogSoftmax"),
    )
    arguments = {"GLU": (1,), "Softmin": (1,), "Softmax": (1,), "LogSoftmax": (1,), "PReLU": (32,)}
    names = names[::2] if first else names[1::2]
    layers = [getattr(nn, name)(*arguments.get(name, ())) for name in names]
    if first:
        layers += [nn.Threshold(0.1, 20), nn.GELU(approximate="tanh"), nn.PReLU()]
    return SideBySide(layers, _CHANNELS)


def in_place() -> nn.Module:
    """Activations in place, each on a result of its own."""
    names = ("ReLU", "LeakyReLU", "ELU", "SiLU", "Hardswish", "Hardtanh", "CELU", "SELU", "Mish")
    layers = [
        nn.Sequential(nn.Conv2d(_CHANNELS, 32, 1), getattr(nn, name)(inplace=True))
        for name in names
    ]
    return SideBySide(layers, _CHANNELS)


def norms(dimensions: int) -> nn.Module:
    """Normalisations, with and without weights and statistics."""
    d = f"{dimensions}d"
    batch, instance = getattr(nn, f"BatchNorm{d}"), getattr(nn, f"InstanceNorm{d}")
    layers = [
        *(batch(32), batch(32, affine=False), batch(32, track_running_stats=False)),
        *(instance(32), instance(32, affine=True, track_running_stats=True)),
        *(nn.GroupNorm(8, 32), nn.GroupNorm(1, 32), nn.GroupNorm(32, 32, affine=False)),
        nn.LocalResponseNorm(3),
    ]
    return SideBySide(layers, _CHANNELS)


def vector_norms(width: int = 384) -> nn.Module:
    """Normalisations over the last dimensions."""
    layers = [
        *(nn.LayerNorm(width), nn.LayerNorm(width, elementwise_affine=False)),
        *(nn.LayerNorm(width, bias=False), nn.LayerNorm((50, width)), nn.RMSNorm(width)),
        nn.RMSNorm(width, elementwise_affine=False),
        Function(partial(nn.functional.normalize, dim=-1)),
    ]
    return SideBySide(layers, 50)


def frozen_norms() -> nn.Module:
    """Batch normalisation in evaluation mode, in a model that trains."""
    layer = nn.BatchNorm2d(32)
    layer.train = lambda mode=True: layer  # type: ignore[method-assign]
    layer.training = False
    return SideBySide([layer, nn.Conv2d(32, 32, 3)], _CHANNELS)


def linears(width: int = 200) -> nn.Module:
    """Linear, bilinear and lazy layers."""
    layers = [
        *(nn.Linear(width, 300), nn.Linear(width, 300, bias=False), nn.Linear(width, 1)),
        *(nn.Identity(), nn.Sequential(nn.Linear(width, 64), nn.Flatten(1))),
        Function(lambda x: x.unflatten(-1, (4, -1)).transpose(1, 2)),
        TwiceInto(nn.Bilinear(width, width, 24)),
    ]
    return SideBySide(layers, 30)


class TwiceInto(nn.Module):
    """A layer of two inputs, given one twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x)


def dropouts() -> nn.Module:
    """Dropouts of every kind."""
    names = ("Dropout", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout")
    layers = [getattr(nn, name)(0.3) for name in names]
    layers += [nn.Dropout(0.0), nn.Dropout(1.0)]
    return SideBySide(
        [*layers, nn.Sequential(nn.Conv2d(32, 8, 1), nn.Dropout(0.1, inplace=True))], 32
    )


def resampling() -> nn.Module:
    """Up and down, by every interpolation."""
    up = partial(nn.Upsample, scale_factor=2)
    interpolate = nn.functional.interpolate
    layers = [
        *(up(mode="nearest"), up(mode="bilinear"), up(mode="bicubic", align_corners=True)),
        *(nn.UpsamplingNearest2d(size=(20, 30)), nn.UpsamplingBilinear2d(scale_factor=1.5)),
        *(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(4)),
        Function(lambda x: interpolate(x, scale_factor=0.5, mode="area")),
        Function(lambda x: interpolate(x, (11, 11), mode="bilinear", antialias=True)),
        Function(lambda x: interpolate(x, scale_factor=2, mode="nearest-exact")),
    ]
    return SideBySide(layers, _CHANNELS)


def resampling_others() -> nn.Module:
    """Interpolation of volumes."""
    layers = [nn.Upsample(scale_factor=2, mode=mode) for mode in ("nearest", "trilinear")]
    return SideBySide(layers, _CHANNELS)


def folds() -> nn.Module:
    """Patches as columns, and back."""
    unfold, fold = nn.Unfold(3, padding=1), nn.Fold((56, 56), 3, padding=1)
    return SideBySide([unfold, nn.Sequential(unfold, fold), nn.Unfold((2, 2), stride=2)], _CHANNELS)


def distances() -> nn.Module:
    """Similarities of a tensor and a shifted copy."""
    pairs = (nn.CosineSimilarity(dim=-1), nn.PairwiseDistance(), nn.PairwiseDistance(1.0))
    functions = [Function(lambda x, f=f: f(x, x.roll(1, 0))) for f in pairs]
    more = [
        Function(lambda x: torch.cdist(x, x.roll(1, 1))),
        Function(lambda x: torch.cdist(x, x, p=1.0)),
    ]
    return SideBySide([*functions, *more], 40)


def attentions(width: int = 128) -> nn.Module:
    """`MultiheadAttention` and the layers of torch's transformer."""
    encoder = partial(nn.TransformerEncoderLayer, width, 4, 256)

    class Attend(nn.Module):
        def __init__(self, needs_weights: bool, **settings: object) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(width, 4, **settings)
            self.needs_weights = needs_weights

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x, x, x, need_weights=self.needs_weights)[0]

    layers = [
        *(Attend(True, batch_first=True), Attend(False, batch_first=True, dropout=0.1)),
        Attend(False, add_bias_kv=True, add_zero_attn=True, bias=False),
        *(encoder(batch_first=True), encoder(activation="gelu", norm_first=True, bias=False)),
        TwiceInto(nn.TransformerDecoderLayer(width, 4, 256, batch_first=True)),
    ]
    return SideBySide(layers, 33)


_case = partial(case, "layers", __name__)
_SIZES = {1: "32,3000", 2: "32,56,56", 3: "32,12,24,24"}


def _in_dimensions(factory: str, kind: str, precisions: tuple[str, ...]) -> list[Case]:
    return [
        _case(
            f"{factory}_{dimensions}d",
            factory,
            size,
            args={"dimensions": dimensions},
            kind=kind,
            precisions=precisions,
        )
        for dimensions, size in _SIZES.items()
    ]


CASES = (
    *_in_dimensions("convolutions", "convolutional", ("fp32", "amp-fp16")),
    *_in_dimensions("depthwise", "convolutional", ("fp32",)),
    *_in_dimensions("transposed", "convolutional", ("fp32", "amp-bf16")),
    *_in_dimensions("pooling", "other", ("fp32", "amp-fp16")),
    *_in_dimensions("padding", "other", ("fp32", "amp-bf16")),
    *_in_dimensions("norms", "other", ("fp32", *AMP)),
    _case("activations_1", "activations", "32,56,56", args={"first": True}),
    _case("activations_2", "activations", "32,56,56", args={"first": False}),
    _case("in_place", "in_place", "32,56,56", kind="convolutional"),
    _case("vector_norms", "vector_norms", "50,384", batch_sizes=(8,)),
    _case("frozen_norms", "frozen_norms", "32,56,56", kind="convolutional"),
    _case("linears", "linears", "30,200"),
    _case("dropouts", "dropouts", "32,56,56"),
    _case("resampling", "resampling", "32,40,56"),
    _case("resampling_volumes", "resampling_others", "32,8,20,20", precisions=("fp32", "amp-fp16")),
    _case("folds", "folds", "32,56,56"),
    _case("distances", "distances", "40,64"),
    _case("attentions", "attentions", "33,128", kind="attention"),
)

"""Shapes of convolutions to measure: drawn at random, and layers of real models.

The random ones are like those of models for images, sound and volumes: usual channel counts most of
the time, any number now and then. Layers of real models are recorded on the meta device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "HELD_OUT_MODELS",
    "Shape",
    "drawn_depthwise",
    "drawn_layers",
    "drawn_shapes",
    "held_out_layers",
    "recorded",
    "shape_of",
]


class Shape(NamedTuple):
    """A convolution without batch, type and memory format; a transposed one as its gradient."""

    channels: int
    size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1


def shape_of(
    channels: int,
    size: tuple[int, ...],
    out: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | None = None,
    dilation: int = 1,
    groups: int = 1,
) -> Shape:
    """Return a layer; one number stands for the same in each dimension, no padding for half a kernel."""
    d = len(size)
    kernel = (kernel,) * d if isinstance(kernel, int) else kernel
    stride = (stride,) * d if isinstance(stride, int) else stride
    if padding is None:
        padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    padding = (padding,) * d if isinstance(padding, int) else padding
    return Shape(channels, size, out, kernel, stride, padding, (dilation,) * d, groups)


# fmt: off
_STEPS_OF_8 = (2, 3, 4, 5, 6, 7, 8, 8, 8, 9, 10, 12, 12, 14, 16, 16, 16, 20, 24, 24, 28, 32, 32, 32,
               40, 48, 48, 56, 60, 64, 64, 64, 72, 80, 96, 96, 112, 128, 128, 144, 160, 192, 256, 256)
_IMAGES = (1, 4, 7, 7, 8, 8, 10, 12, 14, 14, 16, 16, 17, 20, 24, 28, 28, 32, 32, 35, 40, 48, 56, 56, 64,
           72, 80, 96, 112, 112, 128, 149, 160, 192, 224, 224, 256, 299, 320, 384, 512, 640, 800, 1024)
# fmt: on
_VOLUMES = (4, 6, 8, 8, 10, 14, 16, 16, 20, 24, 28, 32, 32, 40, 48, 56, 64, 64, 80, 96, 128, 160)
_BATCHES = (1, 2, 4, 8, 12, 16, 16, 24, 32, 32, 32, 48, 64, 64, 96, 128, 128, 192, 256, 512)


def _channels(chance: random.Random) -> int:
    kind = chance.random()
    if kind < 0.1:
        return chance.choice((1, 2, 3, 3, 3, 4, 6, 8, 9, 12))
    if kind < 0.2:
        return chance.randint(1, 700)
    if kind < 0.9:
        return 8 * chance.choice(_STEPS_OF_8)
    return chance.choice((512, 768, 1024, 1152, 1280, 1536, 2048))


def _sound(chance: random.Random, channels: int, out: int) -> Shape:
    length = chance.choice(
        (
            chance.randint(8, 2000),
            2 ** chance.randint(4, 17),
            100 * chance.randint(1, 1000),
            16000,
            44100,
        )
    )
    kernel = chance.choice((1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 7, 7, 9, 11, 15, 16, 25, 31, 41))
    stride = chance.choice((1, 1, 1, 1, 2, 2, 3, 4, 5, 8))
    if chance.random() < 0.1:
        stride = kernel
    dilation = (
        chance.choice((1, 1, 1, 2, 3, 4, 8, 16, 64, 256)) if stride == 1 and kernel > 1 else 1
    )
    if length > 20000 and chance.random() < 0.6:
        channels, out = min(channels, 128), min(out, 128)
    padding = chance.choice((dilation * (kernel - 1) // 2,) * 3 + (0,))
    return Shape(channels, (length,), out, (kernel,), (stride,), (padding,), (dilation,))


def _image(chance: random.Random, channels: int, out: int) -> Shape:
    height = chance.choice((chance.randint(4, 64), chance.choice(_IMAGES)))
    width = (
        height if chance.random() < 0.75 else chance.choice((height * 2, chance.randint(4, 256)))
    )
    side = chance.choices(
        (1, 2, 3, 4, 5, 7, 9, 11, 14, 16, 32), (30, 4, 40, 5, 6, 6, 1, 2, 0.5, 1.5, 0.3)
    )[0]
    kernel, stride, dilation = (side, side), (1, 1), (1, 1)
    if chance.random() < 0.08:
        kernel = chance.choice(((1, 7), (7, 1), (1, 3), (3, 1), (1, 5), (5, 1), (3, 9), (41, 11)))
    if chance.random() < 0.3:
        stride = (2, 2)
    if side in (2, 4, 7, 8, 14, 16, 32) and chance.random() < 0.5:
        stride = kernel
    if chance.random() < 0.06 and side == 3 and stride == (1, 1):
        dilation = (chance.choice((2, 4, 6, 12, 18)),) * 2
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    if stride == kernel or chance.random() < 0.15:
        padding = (0, 0)
    groups = 1
    kind = chance.random()
    if kind < 0.06:
        groups, each = (
            chance.choice((2, 4, 8, 16, 32, 64)),
            chance.choice((1, 2, 4, 8, 16, 24, 32, 56, 112)),
        )
        channels, out = groups * each, groups * each * chance.choice((1, 1, 1, 2))
    elif kind < 0.09:
        groups = out = channels = max(2, channels)
    return Shape(channels, (height, width), out, kernel, stride, padding, dilation, groups)


def _volume(chance: random.Random, channels: int, out: int) -> Shape:
    depth = chance.choice(_VOLUMES)
    side = chance.choice((depth, depth, 7, 14, 28, 56, 112, 64, 96))
    kernel = chance.choice(
        ((3, 3, 3),) * 6 + ((1, 1, 1),) * 3 + ((2, 2, 2),) * 2
        + ((5, 5, 5), (7, 7, 7), (1, 3, 3), (3, 1, 1), (1, 7, 7), (3, 7, 7), (4, 4, 4), (1, 2, 2))
    )  # fmt: skip
    stride = chance.choice(((1, 1, 1),) * 3 + ((2, 2, 2), (1, 2, 2)))
    if kernel in ((2, 2, 2), (1, 2, 2)):
        stride = kernel
    padding = tuple((k - 1) // 2 for k in kernel)
    channels, out = min(channels, 512), min(out, 512)
    return Shape(channels, (depth, side, side), out, kernel, stride, padding, (1, 1, 1))


def drawn_shapes(chance: random.Random) -> Iterator[tuple[Shape, str, bool, int]]:
    """Yield (shape, type, channels_last, batch) without end."""
    while True:
        channels, out = _channels(chance), _channels(chance)
        if chance.random() < 0.25:
            out = channels
        draw = chance.choices((_sound, _image, _volume), (17, 65, 18))[0]
        shape = draw(chance, channels, out)
        batch = chance.choice(_BATCHES) if chance.random() < 0.6 else chance.randint(1, 200)
        if draw is _volume:
            batch = min(batch, 64)
        channels_last = draw is not _sound and chance.random() < 0.3
        yield shape, chance.choice(("float32", "float16", "bfloat16")), channels_last, batch


# Batch sizes of layers of real networks, besides any.
_LAYER_BATCHES = (1, 2, 2, 3, 4, 4, 6, 8, 8, 12, 16, 16, 24, 32, 32, 48, 64, 64, 96, 128, 192, 256)


def drawn_layers(
    chance: random.Random, layers: list[Shape]
) -> Iterator[tuple[Shape, str, bool, int]]:
    """Yield (shape, type, channels_last, batch) of given layers without end.

    Layers with large tensors come more often: their workspaces decide the peak of a training step.
    """

    def elements(shape: Shape) -> float:
        size, steps = math.prod(shape.size), math.prod(shape.stride)
        weights = shape.channels * shape.out_channels * math.prod(shape.kernel) / shape.groups
        return shape.channels * size + shape.out_channels * size / steps + weights / 16

    totals = list(accumulate(elements(shape) ** 0.4 for shape in layers))
    while True:
        shape = chance.choices(layers, cum_weights=totals)[0]
        dtype = chance.choices(("float32", "float16", "bfloat16"), (50, 38, 12))[0]
        channels_last = len(shape.size) > 1 and chance.random() < 0.14
        depthwise = shape.groups > 1 and shape.groups == shape.channels
        # Depthwise float32 is PyTorch's own; the others cuDNN compiles, for a second each.
        if depthwise and (dtype != "float32" or channels_last) and chance.random() < 0.95:
            continue
        batch = chance.choice(_LAYER_BATCHES)
        if chance.random() < 0.35:
            batch = round(2 ** (8 * chance.random()))
        yield shape, dtype, channels_last, batch


def drawn_depthwise(
    chance: random.Random, layers: list[Shape]
) -> Iterator[tuple[Shape, str, bool, int]]:
    """Yield (shape, type, channels_last, batch) of depthwise layers in channels last without end."""
    depthwise = [shape for shape in layers if 1 < shape.groups == shape.channels]
    depthwise = [shape for shape in depthwise if len(shape.size) > 1]
    while True:
        dtype = chance.choices(("float32", "float16", "bfloat16"), (97, 2, 1))[0]
        yield chance.choice(depthwise), dtype, True, chance.choice(_LAYER_BATCHES)


class _Recorder(TorchDispatchMode):
    """Notes the shapes of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[Shape] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, w, _, stride, padding, dilation, transposed, out_padding, groups = args[:9]
            channels, size, out = x.shape[1], x.shape[2:], w.shape[0]
            if transposed:
                channels, out = w.shape[1] * groups, x.shape[1]
                size = [
                    (n - 1) * s - 2 * p + d * (k - 1) + 1 + o
                    for n, s, p, d, k, o in zip(
                        size, stride, padding, dilation, w.shape[2:], out_padding, strict=True
                    )
                ]
            lists = (w.shape[2:], stride, padding, dilation)
            self.shapes.add(Shape(channels, tuple(size), out, *map(tuple, lists), groups))
        return func(*args, **(kwargs or {}))


def recorded(model: torch.nn.Module, *size: int) -> list[Shape]:
    """Return the layers of a model on the meta device, by the size of a sample."""
    with _Recorder() as recorder:
        model.train()(torch.empty(2, *size, device="meta"))
    return sorted(recorder.shapes)


_TORCHVISION = {
    "resnet50": (3, 224, 224), "inception_v3": (3, 299, 299), "convnext_tiny": (3, 224, 224),
    "mobilenet_v3_large": (3, 224, 224), "efficientnet_b0": (3, 224, 224), "vgg16": (3, 224, 224),
    "efficientnet_b4": (3, 380, 380), "regnet_y_3_2gf": (3, 224, 224), "densenet121": (3, 224, 224),
}  # fmt: skip


def _unet(dimensions: int, side: int, widths: tuple[int, ...], inputs: int) -> list[Shape]:
    ones, shapes, before = (1,) * dimensions, [], inputs

    def conv(a: int, b: int, n: int, k: int = 3, s: int = 1) -> Shape:
        return Shape(a, (n,) * dimensions, b, (k,) * dimensions, (s,) * dimensions,
                     ((k - 1) // 2,) * dimensions, ones)  # fmt: skip

    for level, width in enumerate(widths):
        n = side >> level
        shapes += [conv(before, width, n), conv(width, width, n)]
        if level + 1 < len(
            widths
        ):  # the way up: a transposed convolution, and twice as many channels
            shapes += [conv(width, widths[level + 1], n, 2, 2), conv(2 * width, width, n)]
        before = width
    return [*shapes, conv(widths[0], 2, side, 1)]


def _one_dimensional(*rows: tuple[int, int, int, int, int, int, int]) -> list[Shape]:
    return [Shape(c, (n,), k, (w,), (s,), (p,), (d,)) for c, n, k, w, s, p, d in rows]


_WAVENET = _one_dimensional(
    (1, 16000, 64, 1, 1, 0, 1), (64, 16000, 256, 1, 1, 0, 1), (256, 16000, 256, 1, 1, 0, 1),
    *((64, 16000 + 2**i, 128, 2, 1, 0, 2**i) for i in range(10)), (64, 16000, 64, 1, 1, 0, 1),
)  # fmt: skip
_HIFIGAN = _one_dimensional(
    (80, 32, 512, 7, 1, 3, 1), (256, 256, 512, 16, 8, 4, 1), (128, 2048, 256, 16, 8, 4, 1),
    (64, 4096, 128, 4, 2, 1, 1), (32, 8192, 64, 4, 2, 1, 1), (32, 8192, 1, 7, 1, 3, 1),
    *((c, n, c, k, 1, d * (k - 1) // 2, d) for c, n in ((256, 256), (128, 2048), (64, 4096), (32, 8192))
      for k in (3, 7, 11) for d in (1, 3, 5)),
)  # fmt: skip
_DCGAN = [
    Shape(c, (n, n), k, (4, 4), (s, s), (p, p), (1, 1))
    for c, n, k, s, p in ((3, 64, 64, 2, 1), (64, 32, 128, 2, 1), (128, 16, 256, 2, 1),
                          (256, 8, 512, 2, 1), (512, 4, 1, 1, 0), (512, 4, 100, 1, 0))
]  # fmt: skip

HELD_OUT_MODELS = (*_TORCHVISION, "unet", "unet3d", "wavenet", "hifigan", "dcgan")


def held_out_layers() -> dict[str, list[Shape]]:
    """Return the layers of models that no tree may be fitted to. Needs torchvision."""
    from torchvision import models

    layers = {
        "unet": _unet(2, 256, (64, 128, 256, 512, 1024), 3),
        "unet3d": _unet(3, 64, (32, 64, 128, 256, 320), 1),
        "wavenet": _WAVENET,
        "hifigan": _HIFIGAN,
        "dcgan": _DCGAN,
    }
    for name, size in _TORCHVISION.items():
        layers[name] = recorded(models.get_model(name, weights=None).to("meta"), *size)
    return layers

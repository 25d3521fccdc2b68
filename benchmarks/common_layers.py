"""Convolutions that many small models have and few published networks: rows written by hand.

Patches of small images, kernels as large as the image, networks for digits and CIFAR, one filter for
each channel. cuDNN's choices for them are not those for the layers of large networks.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from convolution_shapes import Shape, shape_of

__all__ = ["depthwise", "small_images", "small_patches", "whole_images"]


def small_patches(chance: random.Random) -> Iterator[Shape]:
    """Patch embeddings and mergers of small models, and of any size now and then."""
    for _ in range(1200):
        side = chance.choice((2, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 8, 10, 12, 14, 16, 16, 32))
        patches = chance.choice(
            (2, 3, 4, 4, 5, 6, 7, 7, 8, 8, 8, 10, 12, 14, 14, 16, 16, 20, 28, 32)
        )
        if side * patches > 448:
            continue
        width = chance.choice(
            (8, 16, 16, 24, 32, 32, 48, 64, 64, 64, 80, 96, 96, 128, 128, 128, 144, 160, 192, 192,
             256, 256, 320, 384, 384, 512, 512, 768, 1024)
        )  # fmt: skip
        channels = chance.choice((3, 3, 3, 3, 3, 3, 1, 1, 2, 4, 8, 12, 16))
        if side <= 4 and chance.random() < 0.4:  # between stages
            channels = chance.choice((16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 384, 512))
        pixels = side * patches + (chance.randint(1, side - 1) if chance.random() < 0.08 else 0)
        across = pixels if chance.random() < 0.85 else side * chance.choice((1, 2, 4, 6, 9, 14, 32))
        yield shape_of(channels, (pixels, across), width, side, side, 0)


def whole_images(chance: random.Random) -> Iterator[Shape]:
    """Kernels as large as the image: classifiers made of convolutions, discriminators, readouts."""
    for _ in range(1300):
        side = chance.choice((2, 3, 4, 4, 4, 4, 5, 6, 7, 7, 7, 7, 8, 8, 9, 10, 12, 14, 16))
        size = (side, side)
        if chance.random() < 0.12:
            size = (chance.choice((1, 2, 3, 4, 8, 16, 32, 40, 64)), side)
        if chance.random() < 0.08:
            size = (chance.choice((2, 3, 4)), *size)
        channels = chance.choice(
            (3, 16, 32, 64, 96, 128, 128, 160, 192, 256, 256, 256, 320, 384, 448, 512, 512, 512, 512,
             640, 768, 1024, 1024, 1280, 1536, 2048, chance.randint(1, 1024))
        )  # fmt: skip
        out = chance.choice(
            (1, 1, 1, 1, 10, 16, 32, 64, 64, 100, 128, 128, 200, 256, 256, 512, 512, 768, 1000, 1024,
             1024, 2048, 4096, 4096, 4096, channels, channels, chance.randint(1, 1024))
        )  # fmt: skip
        if channels * out * side * side > 150_000_000:
            continue
        if chance.random() < 0.07:  # one filter for each channel, as a learnt pooling
            yield shape_of(channels, size, channels, size, 1, 0, groups=channels)
            continue
        yield shape_of(channels, size, out, size, 1, 0)
        if chance.random() < 0.1:  # nearly as large
            size = tuple(n + chance.choice((1, 2)) for n in size)
            yield shape_of(channels, size, out, (side,) * len(size), chance.choice((1, 1, 2)), 0)


def small_images(chance: random.Random) -> Iterator[Shape]:
    """Networks for small images: digits, CIFAR, faces, boards, first tries."""
    for _ in range(500):
        side = chance.choice((8, 9, 16, 19, 24, 28, 28, 32, 32, 32, 36, 40, 48, 64, 64, 75, 84, 96))
        before = chance.choice((1, 1, 3, 3, 3, 4))
        width = chance.choice((4, 6, 8, 10, 12, 16, 16, 16, 20, 24, 32, 32, 32, 36, 48, 64, 64, 96))
        kernel = chance.choice((3, 3, 3, 3, 5, 5, 7))
        padding = chance.choice((None, None, None, 0))
        for _ in range(chance.choice((2, 3, 3, 4, 5))):
            step = chance.choice((1, 1, 1, 2))
            if side < 4:
                break
            yield shape_of(before, (side, side), width, min(kernel, side), step, padding)
            yield shape_of(width, (side, side), width, 3, chance.choice((1, 1, 1, 2)))
            if chance.random() < 0.3:
                yield shape_of(before, (side, side), width, 1, step)
            before, kernel = width, chance.choice((kernel, 3, 3))
            width = min(1024, int(width * chance.choice((1, 1.5, 2, 2, 2))))
            side = side if chance.random() < 0.2 else side // 2


def depthwise(chance: random.Random) -> Iterator[Shape]:
    """One filter for each channel, as mobile networks and ConvNeXt have them."""
    widths = (16, 24, 32, 40, 48, 64, 72, 80, 96, 96, 112, 120, 128, 144, 160, 184, 192, 192, 224, 240,
              256, 288, 320, 336, 384, 384, 432, 480, 512, 576, 640, 672, 768, 768, 816, 896, 960,
              1024, 1152, 1344, 1536, 1632, 2048, 2304, 2688, 3072)  # fmt: skip
    for _ in range(1500):
        side = chance.choice((4, 6, 7, 7, 7, 8, 10, 12, 14, 14, 14, 16, 16, 19, 20, 24, 28, 28, 28, 32,
                              38, 40, 48, 56, 56, 56, 64, 72, 80, 95, 96, 112, 112, 128, 150, 160,
                              190, 192))  # fmt: skip
        width = chance.choice(widths)
        if width * side * side > 4_000_000:
            continue
        kernel = chance.choice((3, 3, 3, 3, 3, 5, 5, 5, 7, 7, 7, 7, 9, 11, 13, 31))
        stride = chance.choice((1, 1, 1, 2)) if kernel < 9 else 1
        padding = None if chance.random() < 0.93 else 0
        if padding is not None and kernel > side:
            continue
        yield shape_of(width, (side, side), width, kernel, stride, padding, groups=width)

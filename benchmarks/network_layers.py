"""Convolutions of real networks, to measure the workspaces that training them will ask for.

Layers of timm's and torchvision's networks are recorded on the meta device, at their own image size
and at another. Kinds of networks that neither has come as rows written by hand: patches of images and
videos, stacks for sound, U-Nets, decoders of images, necks of detectors.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from common_layers import depthwise, small_images, small_patches, whole_images
from convolution_shapes import Shape, held_out_layers, recorded, shape_of

__all__ = ["KINDS", "network_layers"]

_IMAGE_SIDES = (96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 416, 448, 512, 640)
# Not convolutional, or not to be run without targets.
_SKIPPED = (
    "quantized",
    "vit_",
    "swin",
    "maxvit",
    "raft",
    "rcnn",
    "ssd",
    "retina",
    "fcos",
    "keypoint",
)


def _patches(chance: random.Random) -> Iterator[Shape]:
    """Patch embeddings of images: as wide as transformers are, and as finely cut."""
    widths = (48, 64, 96, 128, 192, 256, 320, 384, 432, 512, 576, 640, 768, 832, 896, 1024, 1152,
              1280, 1408, 1536, 1664)  # fmt: skip
    for width in widths:
        for side in (2, 4, 4, 7, 8, 8, 10, 12, 14, 14, 14, 16, 16, 16, 16, 28, 32, 32):
            patches = chance.choice((7, 8, 12, 14, 16, 16, 18, 20, 24, 27, 28, 32, 37, 48, 56, 64))
            sizes = {patches * side, chance.choice((224, 224, 256, 336, 384, 448, 518))}
            for pixels in sizes:
                if pixels <= 800:
                    channels = chance.choice((3, 3, 3, 3, 3, 1, 4, 2, 6, 13, 16))
                    yield shape_of(channels, (pixels, pixels), width, side, side, 0)
                    if chance.random() < 0.3:  # overlapping, as in PVT, CvT, SegFormer
                        overlap, step = chance.choice(((7, 4), (3, 2), (7, 2), (16, 10), (5, 4)))
                        yield shape_of(channels, (pixels, pixels), width, overlap, step)
    for width in (32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 352, 384, 512, 768, 1024):
        for factor in (1, 1.5, 2, 2, 2, 4):  # between stages
            side = chance.choice((14, 28, 28, 32, 56, 56, 64, 96, 112))
            step = chance.choice((2, 2, 2, 2, 4))
            yield shape_of(width, (side, side), int(width * factor), step, step, 0)
            # Attention over keys that are reduced in space.
            yield shape_of(width, (side, side), width, *(2 * (chance.choice((2, 4, 8)),)), 0)


def _tubelets(chance: random.Random) -> Iterator[Shape]:
    """Patch embeddings of videos and volumes."""
    for width in (48, 96, 128, 192, 384, 512, 768, 1024, 1280, 1408):
        for _ in range(24):
            kernel = chance.choice(
                ((2, 16, 16),) * 6 + ((2, 14, 14), (1, 16, 16), (4, 16, 16), (2, 8, 8), (2, 4, 4),
                 (8, 8, 8), (16, 16, 16), (16, 16, 16), (4, 4, 4), (2, 2, 2), (3, 16, 16), (8, 16, 16))
            )  # fmt: skip
            frames = kernel[0] * chance.choice((1, 2, 4, 8, 8, 8, 16, 16))
            side = kernel[1] * chance.choice((6, 7, 8, 10, 12, 14, 14, 14, 16, 24))
            if kernel[1] <= 4:
                side = chance.choice((32, 64, 96, 112, 128, 224))
            if frames * side * side > 4_000_000:
                continue
            channels = chance.choice((1, 3, 3, 3, 4))
            yield shape_of(channels, (frames, side, side), width, kernel, kernel, 0)


def _sound(chance: random.Random) -> Iterator[Shape]:
    """Stacks for sound: feature extractors, acoustic models, codecs, vocoders, separators."""
    for _ in range(60):
        width = chance.choice((512, 512, 512, 256, 384, 128))
        n = chance.choice((8000, 10000, 16000, 16000, 24000, 32000, 48000, 64000, 80000, 160000))
        n += chance.choice((0, 0, 0, chance.randint(0, 4000)))
        for channels, k, s in ((1, 10, 5), *((width, 3, 2),) * 4, *((width, 2, 2),) * 2):
            yield shape_of(channels, (n,), width, k, s, 0)
            n = (n - k) // s + 1
        model = chance.choice((768, 768, 1024, 512, 384))
        k = chance.choice((128, 128, 31, 95, 19))
        yield shape_of(model, (n,), model, k, 1, k // 2, 1, chance.choice((16, 16, 8, 1)))
    for _ in range(120):  # mel frames
        frames = chance.choice((80, 100, 128, 200, 256, 400, 500, 800, 1000, 1500, 3000))
        model = chance.choice((80, 128, 192, 256, 384, 512, 512, 768, 1024, 1280))
        k = chance.choice((1, 3, 3, 3, 5, 5, 7, 9, 11, 15, 31))
        inputs = chance.choice((model, model, model, 40, 64, 80, 80, 128))
        out = chance.choice((model, model, 2 * model, 4 * model))
        stride = chance.choice((1, 1, 1, 2))
        yield shape_of(inputs, (frames,), out, k, stride, None, chance.choice((1, 1, 1, 2, 4)))
        if chance.random() < 0.4:
            yield shape_of(model, (frames,), model, chance.choice((5, 7, 9, 15, 31)), groups=model)
    for _ in range(40):  # codecs, vocoders, separators: from samples down, and up again
        width, n = (
            chance.choice((16, 24, 32, 48, 64)),
            chance.choice((8192, 16384, 16000, 24000, 44100, 65536)),
        )
        yield shape_of(1, (n,), width, chance.choice((7, 15, 41)))
        for s in chance.choice(
            ((2, 4, 5, 8), (8, 8, 2, 2), (4, 4, 4, 4), (2, 2, 2, 2), (8, 5, 4, 2))
        ):
            for dilation in (1, chance.choice((3, 9, 5))):
                yield shape_of(width, (n,), width, chance.choice((3, 7, 11, 15)), dilation=dilation)
            yield shape_of(width, (n,), min(2 * width, 1024), 2 * s, s, s // 2)
            n, width = n // s, min(2 * width, 1024)
    for _ in range(30):  # residual stacks with dilation
        width, n = chance.choice((32, 64, 128, 256)), chance.choice((2000, 4000, 8000, 16000, 3200))
        for dilation in (1, 4, 16, 128, 512):
            yield shape_of(width, (n + dilation,), 2 * width, 2, 1, 0, dilation)
            yield shape_of(width, (n,), width, 3, 1, None, dilation)
        yield shape_of(width, (n,), 2 * width, 1)
    for _ in range(30):  # spectrograms, as images
        k, s = chance.choice(
            (
                ((41, 11), (2, 2)),
                ((21, 11), (2, 1)),
                ((3, 3), (2, 2)),
                ((5, 5), (1, 2)),
                ((3, 9), (1, 2)),
            )
        )
        channels = chance.choice((1, 1, 32, 64))
        size = (
            chance.choice((64, 80, 128, 161, 201, 257)),
            chance.choice((100, 200, 256, 400, 998, 1024)),
        )
        yield shape_of(channels, size, chance.choice((32, 32, 64, 128, 256)), k, s)


def _unets(chance: random.Random) -> Iterator[Shape]:
    for _ in range(130):
        d = chance.choice((1, 2, 2, 2, 3, 3, 3))
        side = chance.choice(
            {1: (1024, 4096, 16384), 2: (64, 128, 192, 256, 256, 384, 512, 572),
             3: (16, 32, 48, 64, 64, 80, 96, 112, 128)}[d]
        )  # fmt: skip
        size = (side,) * d
        if chance.random() < 0.2:
            size = (max(16, side // chance.choice((2, 4))), *size[1:])
        width = chance.choice((16, 24, 32, 32, 48, 64, 64) if d > 1 else (32, 64, 128))
        before, levels = chance.choice((1, 1, 2, 3, 3, 4)), chance.choice((3, 4, 4, 5, 5))
        limit = chance.choice((320, 512, 1024))
        growth, k = chance.choice((1.5, 2, 2, 2, 2)), chance.choice((3, 3, 3, 3, 5))
        for level in range(levels):
            above = min(limit, int(width * growth))
            yield shape_of(before, size, width, k)
            yield shape_of(width, size, width, k)
            if chance.random() < 0.3:
                yield shape_of(before, size, width, 1)
            if level + 1 == levels:
                break
            down = chance.random()
            if down < 0.35:
                yield shape_of(width, size, above if down < 0.15 else width, k, 2)
            yield shape_of(width, size, above, chance.choice((2, 2, 4)), 2, 0)  # the way up
            yield shape_of(width + above, size, width, k)
            yield shape_of(2 * width, size, width, k)
            if level == 0:
                yield shape_of(
                    width, size, chance.choice((1, 2, 3, 4, 14, 21)), chance.choice((1, 1, 3))
                )
            before, width, size = width, above, tuple(n // 2 for n in size)


def _decoders(chance: random.Random) -> Iterator[Shape]:
    """Autoencoders, generators, discriminators, super-resolution, diffusion."""
    for _ in range(120):
        width, levels = chance.choice((32, 64, 64, 96, 128, 128, 160, 192, 224, 256, 320)), 4
        side = chance.choice((32, 64, 64, 96, 128, 128, 256, 256, 512))
        before = chance.choice((3, 3, 4, 1))
        yield shape_of(before, (side, side), width, chance.choice((3, 3, 7)))
        yield shape_of(width, (side, side), before, chance.choice((3, 3, 7, 9)))
        base = width
        for level in range(levels):
            if side < 4:
                break
            above = min(base * chance.choice((8, 4)), 2 * width if level % 2 == 0 else width)
            k, s, p = chance.choice(
                ((4, 2, 1), (4, 2, 1), (3, 2, 1), (3, 2, 0), (5, 2, 2), (2, 2, 0), (6, 2, 2))
            )
            yield shape_of(width, (side + (1 if p == 0 and k == 3 else 0),) * 2, above, k, s, p)
            yield shape_of(width, (side, side), width, 3)
            yield shape_of(above, (side, side), width, 3)
            yield shape_of(width + above, (side, side), width, 3)
            if chance.random() < 0.3:
                yield shape_of(width + above, (side, side), width, 1)
            width, side = above, side // 2
        yield shape_of(width, (4, 4), 1, 4, 1, 0)
        yield shape_of(width, (4, 4), chance.choice((64, 100, 128, 256)), 4, 1, 0)
        n, w = chance.choice((24, 32, 48, 64, 96, 128)), chance.choice((32, 60, 64, 64, 96, 180))
        for channels, out in ((3, w), (w, w), (w, 4 * w), (w, 9 * w), (w, 3), (w, 48)):
            yield shape_of(channels, (n, n), out, 3)


def _detectors(chance: random.Random) -> Iterator[Shape]:
    """Necks and heads over maps of several scales, and atrous pyramids."""
    for _ in range(60):
        side = chance.choice((224, 320, 416, 512, 512, 608, 640, 640, 800, 1024))
        across = side if chance.random() < 0.7 else side * 4 // 3 // 32 * 32
        out = chance.choice((64, 88, 128, 160, 256, 256, 256))
        for step in (4, 8, 16, 32, 64):
            size = (-(-side // step), -(-across // step))
            yield shape_of(chance.choice((64, 128, 256, 512, 1024, 2048)), size, out, 1)
            yield shape_of(out, size, out, 3)
            yield shape_of(out, size, out, 3, 2)
            for last in (
                chance.choice((4, 36, 80, 85, 255, 720, 819)),
                chance.choice((9, 12, 3, 1)),
            ):
                yield shape_of(out, size, last, chance.choice((1, 3)))
        inputs = chance.choice((256, 320, 512, 960, 2048, 2048))
        side = chance.choice((14, 28, 32, 33, 60, 64, 65))
        for dilation in (6, 12, 18, 24, 36):
            yield shape_of(inputs, (side, side), 256, 3, dilation=dilation)
        yield shape_of(5 * 256, (side, side), 256, 1)
        for stride in (1, 2):  # first layers
            width = chance.choice((16, 24, 32, 40, 48, 64, 80))
            k = chance.choice((3, 3, 3, 6, 7))
            large = chance.choice((224, 256, 320, 384, 416, 512, 640, 800))
            yield shape_of(3, (large, large), width, k, stride)
            yield shape_of(width, (large // stride,) * 2, 2 * width, 3, 2)


def _grouped(chance: random.Random) -> Iterator[Shape]:
    """Groups as ResNeXt, RegNet and ShuffleNet have them."""
    for _ in range(500):
        each = chance.choice(
            (4, 8, 8, 16, 16, 16, 24, 32, 32, 40, 48, 56, 58, 64, 64, 112, 128, 264)
        )
        groups = chance.choice((2, 3, 4, 5, 6, 7, 8, 8, 12, 13, 16, 22, 27, 32, 32, 32, 64))
        if each * groups > 4096:
            continue
        side = chance.choice((7, 8, 10, 12, 14, 14, 16, 20, 28, 28, 32, 40, 56, 56, 64, 112))
        stride = chance.choice((1, 1, 2))
        k = chance.choice((3, 3, 3, 3, 3, 1, 5, 7))
        yield shape_of(each * groups, (side, side), each * groups, k, stride, None, 1, groups)


def _videos(chance: random.Random) -> Iterator[Shape]:
    for _ in range(60):
        frames, side = (
            chance.choice((4, 8, 8, 16, 16, 32)),
            chance.choice((112, 112, 128, 160, 224)),
        )
        width = chance.choice((24, 32, 45, 64, 64, 83))
        yield shape_of(
            3,
            (frames, side, side),
            width,
            chance.choice(((3, 7, 7), (1, 7, 7), (7, 7, 7), (5, 7, 7), (1, 3, 3))),
            (1, 2, 2),
        )
        side //= 2
        for _ in range(4):
            kernel = chance.choice(((3, 3, 3), (3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)))
            yield shape_of(width, (frames, side, side), width, kernel)
            above = min(512, 2 * width)
            yield shape_of(
                width, (frames, side, side), above, kernel, chance.choice((2, (1, 2, 2), 1))
            )
            yield shape_of(width, (frames, side, side), above, 1, chance.choice((2, (1, 2, 2))))
            if chance.random() < 0.3:
                yield shape_of(width, (frames, side, side), width, (3, 3, 3), groups=width)
            frames, side, width = max(1, frames // 2), max(4, side // 2), above


_BY_HAND = {
    "patches": _patches,
    "small patches": small_patches,
    "whole images": whole_images,
    "small images": small_images,
    "depthwise": depthwise,
    "tubelets": _tubelets,
    "sound": _sound,
    "unets": _unets,
    "decoders": _decoders,
    "detectors": _detectors,
    "grouped": _grouped,
    "videos": _videos,
}

# What `network_layers` can be asked for: the kinds written by hand.
KINDS = tuple(_BY_HAND)


def _names(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (library, name), family after family, without end of one before the next begins."""
    import timm
    from torchvision import models

    families: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in timm.list_models():
        families[name.split("_")[0].rstrip("0123456789")].append(("timm", name))
    for name in models.list_models():
        if not any(part in name for part in _SKIPPED):
            families[name.split("_")[0].rstrip("0123456789")].append(("torchvision", name))
    for members in families.values():
        chance.shuffle(members)
    for row in range(max(map(len, families.values()))):
        for members in families.values():
            if row < len(members):
                yield members[row]


def _published(chance: random.Random, seconds: float) -> set[Shape]:
    """Return the layers of as many published networks as there is time for."""
    import timm
    from torchvision import models

    end = time.monotonic() + seconds
    shapes: set[Shape] = set()
    count = 0
    for library, name in _names(chance):
        if time.monotonic() > end:
            break
        sizes: list[tuple[Any, ...]] = [(3, 224, 224), (3, chance.choice(_IMAGE_SIDES[:-3]), 0)]
        try:
            with torch.device("meta"):
                if library == "timm":
                    model = timm.create_model(name)
                    sizes[0] = model.default_cfg["input_size"]
                else:
                    segments = any(part in name for part in ("deeplab", "fcn", "lraspp"))
                    without = {"weights_backbone": None} if segments else {}
                    model = models.get_model(name, weights=None, **without)
                    if any(part in name for part in ("r3d", "mc3", "r2plus", "s3d", "mvit")):
                        sizes = [(3, 16, 112, 112)]
        except Exception as error:  # a network that needs more than its name
            print(name, repr(error)[:80])
            continue
        for size in sizes:
            whole = size if size[-1] else (size[0], size[1], size[1])
            if max(whole[1:]) > 700:
                continue
            try:
                shapes.update(recorded(model, *whole))
            except Exception:  # an image size that it does not take, or values are needed
                continue
        count += 1
    print(f"{count} networks")
    return shapes


def network_layers(seed: int, seconds: float, kinds: Sequence[str] = KINDS) -> list[Shape]:
    """Return layers of many networks, without those of the held-out models.

    Args:
        seed: of what is drawn.
        seconds: to spend on timm's and torchvision's networks.
        kinds: of the layers written by hand, some of `KINDS`.
    """
    held = {shape for shapes in held_out_layers().values() for shape in shapes}
    chance = random.Random(seed)
    shapes = {shape for kind in kinds for shape in _BY_HAND[kind](chance)}
    if seconds > 0:
        shapes |= _published(chance, seconds)
    return sorted(shapes - held)

"""The layers that cuDNN's choices are sampled for: `python -m benchmarks.convolution_layers` records them.

benchmarks/data/convolution_layers.csv.gz has a line for each convolution (a transposed one as the
convolution whose gradient it is): where it comes from, and its shapes. `published` are layers of timm's
and torchvision's networks, recorded on the meta device at their own image size and at another one.
`held out: NAME` are the layers of whole models that no tree may be fitted to. The other lines were written
by hand, for kinds of networks that neither library has: they stay as they are when the command runs.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bsfind.simulation.kernels.cudnn_problem import convolved_size

LAYERS = Path(__file__).parent / "data" / "convolution_layers.csv.gz"
PUBLISHED, HELD_OUT = "published", "held out: "
IMAGE_SIDES = (96, 128, 160, 192, 224, 240, 256, 288, 320, 384, 416)
# Not convolutional, or not to be run without targets.
SKIPPED = (
    *("quantized", "vit_", "swin", "maxvit", "raft", "rcnn", "ssd", "retina", "fcos", "keypoint"),
)
TORCHVISION_HELD_OUT = {
    "resnet50": (3, 224, 224), "inception_v3": (3, 299, 299), "convnext_tiny": (3, 224, 224),
    "mobilenet_v3_large": (3, 224, 224), "efficientnet_b0": (3, 224, 224), "vgg16": (3, 224, 224),
    "efficientnet_b4": (3, 380, 380), "regnet_y_3_2gf": (3, 224, 224), "densenet121": (3, 224, 224),
}  # fmt: skip


class Layer(NamedTuple):
    """A convolution without batch, type and memory format; the tuples have a number per dimension."""

    channels: int
    size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, ...]:
        """Size of the output in space."""
        return convolved_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def elements(self) -> float:
        """Elements of x and y of one sample, and a share of the weights."""
        weights = self.channels * self.out_channels * math.prod(self.kernel) / self.groups
        x, y = self.channels * math.prod(self.size), self.out_channels * math.prod(self.out_size)
        return x + y + weights / 16


class Case(NamedTuple):
    """A layer to measure: dtype is the name of a torch.dtype."""

    layer: Layer
    dtype: str
    channels_last: bool
    batch: int


def read_layers() -> dict[str, list[Layer]]:
    """Return the recorded layers by where they come from, in the order of the file."""
    layers: dict[str, list[Layer]] = defaultdict(list)
    with gzip.open(LAYERS, "rt", newline="") as lines:
        for source, *fields in csv.reader(lines):
            sizes = [tuple(map(int, field.split("x"))) for field in fields]
            channels, size, out_channels, *rest, groups = sizes
            layers[source].append(Layer(channels[0], size, out_channels[0], *rest, groups[0]))
    return layers


@lru_cache(maxsize=1)
def held_out_models() -> list[str]:
    """Return the names of the models that no tree is fitted to a layer of."""
    return [name.removeprefix(HELD_OUT) for name in read_layers() if name.startswith(HELD_OUT)]


def write_layers(layers: dict[str, list[Layer]]) -> None:
    """Write the file; the same layers give the same bytes."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for source, some in layers.items():
        for layer in some:
            fields = [f if isinstance(f, tuple) else (f,) for f in layer]
            rows.writerow((source, *("x".join(map(str, field)) for field in fields)))
    with gzip.GzipFile(LAYERS, "wb", mtime=0) as target:
        target.write(text.getvalue().encode())


# Batch sizes that are usual; any other comes too.
BATCHES = (1, 2, 2, 3, 4, 4, 6, 8, 8, 12, 16, 16, 24, 32, 32, 48, 64, 64, 96, 128, 192, 256)


def drawn_cases(chance: random.Random, layers: list[Layer]) -> Iterator[Case]:
    """Yield layers, and layers with other numbers, without end.

    Those with large tensors come more often: their workspaces decide the peak of a training step.
    """
    totals = list(accumulate(layer.elements**0.4 for layer in layers))
    while True:
        (layer,) = chance.choices(layers, cum_weights=totals)
        if chance.random() < 0.3:
            layer = _varied(chance, layer)
        dtype = chance.choices(("float32", "float16", "bfloat16"), (50, 38, 12))[0]
        depthwise = layer.groups > 1 and layer.groups == layer.channels
        # PyTorch has kernels of its own for most depthwise layers that are not channels_last.
        often = 0.6 if depthwise else 0.16
        channels_last = len(layer.size) > 1 and chance.random() < often
        batch = chance.choice(BATCHES)
        if chance.random() < 0.35:
            batch = round(2 ** (8 * chance.random()))
        yield Case(layer, dtype, channels_last, batch)


def _varied(chance: random.Random, layer: Layer) -> Layer:
    """Return a layer with other channels, size or kernel."""
    c, k, groups, size = layer.channels, layer.out_channels, layer.groups, layer.size
    what = chance.random()
    if what < 0.5 and groups == 1:
        narrow = min(c, k) < 16
        c = c if narrow else _other(chance, c)
        k = layer.channels if what < 0.08 and not narrow else _other(chance, k)
    if what > 0.35:
        same = chance.random() < 0.7 and len(set(size)) == 1
        sides = [_other(chance, n, 1) for n in size]
        size = tuple(sides[:1] * len(size)) if same else tuple(sides)
    kernel, padding = layer.kernel, layer.padding
    if what > 0.85 and groups == 1:
        side = chance.choice((1, 2, 3, 3, 4, 5, 7, 9, 11))
        kernel = tuple(side if n > 1 else n for n in kernel)
        padding = tuple(d * (n - 1) // 2 for n, d in zip(kernel, layer.dilation, strict=True))
    return Layer(c, size, k, kernel, layer.stride, padding, layer.dilation, groups)


def _other(chance: random.Random, number: int, multiple: int = 8) -> int:
    """Return a number between half and twice another, most often a multiple."""
    found = number * 2 ** chance.uniform(-1, 1)
    return max(1, round(found) if chance.random() < 0.3 else round(found / multiple) * multiple)


class _Recorder(TorchDispatchMode):
    """Notes the shapes of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: set[Layer] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, w, _, stride, padding, dilation, transposed, out_padding, groups = args[:9]
            channels, size, out, kernel = x.shape[1], tuple(x.shape[2:]), w.shape[0], w.shape[2:]
            if transposed:
                channels, out = w.shape[1] * groups, x.shape[1]
                numbers = zip(size, stride, padding, dilation, kernel, out_padding, strict=True)
                size = tuple(
                    (n - 1) * s - 2 * p + d * (k - 1) + 1 + o for n, s, p, d, k, o in numbers
                )
            lists = map(tuple, (kernel, stride, padding, dilation))
            self.layers.add(Layer(channels, size, out, *lists, groups))
        return func(*args, **(kwargs or {}))


def _recorded(model: torch.nn.Module, size: tuple[int, ...]) -> list[Layer]:
    with _Recorder() as recorder:
        model.train()(torch.empty(2, *size, device="meta"))
    return sorted(recorder.layers)


def _networks(chance: random.Random) -> Iterator[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Yield (name, network on the meta device, size of its images), family after family in turn."""
    import timm
    from torchvision import models

    families: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for is_timm, names in ((True, timm.list_models()), (False, models.list_models())):
        for name in names:
            if is_timm or not any(part in name for part in SKIPPED):
                families[name.split("_")[0].rstrip("0123456789")].append((is_timm, name))
    for members in families.values():
        chance.shuffle(members)
    for row in range(max(map(len, families.values()))):
        for members in families.values():
            if row >= len(members):
                continue
            is_timm, name = members[row]
            size = (3, 224, 224)
            with torch.device("meta"):
                if is_timm:
                    model = timm.create_model(name)
                    size = model.default_cfg["input_size"]
                else:
                    segments = any(part in name for part in ("deeplab", "fcn", "lraspp"))
                    without = {"weights_backbone": None} if segments else {}
                    model = models.get_model(name, weights=None, **without)
                    if any(part in name for part in ("r3d", "mc3", "r2plus", "s3d", "mvit")):
                        size = (3, 16, 112, 112)
            yield name, model, size


def _published(seconds: float) -> set[Layer]:
    """Return the layers of as many published networks as there is time for."""
    chance = random.Random(3)
    end, layers = time.monotonic() + seconds, set()
    for name, model, size in _networks(chance):
        side = chance.choice(IMAGE_SIDES)
        for each in dict.fromkeys((size, (3, side, side)) if len(size) == 3 else (size,)):
            try:
                layers.update(_recorded(model, each))
            except Exception as error:  # another image size, or values of tensors, are needed
                print(name, each, repr(error)[:80])
        if time.monotonic() > end:
            break
    return layers


def main() -> None:
    """Record the layers of published networks anew."""
    from torchvision import models

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=math.inf, help="to spend on networks")
    arguments = parser.parse_args()
    layers = read_layers()
    for name, size in TORCHVISION_HELD_OUT.items():
        model = models.get_model(name, weights=None).to("meta")
        layers[HELD_OUT + name] = _recorded(model, size)
    held_out = {
        each for source, some in layers.items() if source.startswith(HELD_OUT) for each in some
    }
    layers[PUBLISHED] = sorted(_published(arguments.seconds) - held_out)
    write_layers(layers)
    print({source: len(some) for source, some in layers.items()})


if __name__ == "__main__":
    from benchmarks.torchvision_import import import_torchvision

    import_torchvision()
    main()

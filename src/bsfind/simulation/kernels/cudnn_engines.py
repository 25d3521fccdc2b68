"""Which kind of engine cuDNN's heuristic puts first for a convolution: decision trees.

The trees were fitted to the choices of cuDNN for some hundred thousand calls per GPU, most of them
layers of real networks; the member `manifest.json` of the data file tells how (benchmarks/cudnn_trees.py).
There are some trees for each GPU, pass, type and memory format, which vote by the workspace that follows.
They ask for bins of the features, of which there are at most 256, so that a node is two bytes.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from itertools import accumulate
from typing import NamedTuple

import torch

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem

# The version of cuDNN that the trees stand for, as cudnnGetVersion() writes it.
CUDNN_VERSION = 92000

# The fitted trees, in members GPU/grid and GPU/KEY; `MANIFEST` tells how they were made.
DATA_FILE = "cudnn_engines.zip"
MANIFEST = "manifest.json"

# What a leaf has in place of the number of a feature.
LEAF = 255

# The multiprocessors of the GPUs that were sampled.
MULTIPROCESSORS = {"h100": 132, "a100": 108, "rtx3090": 82, "rtx4090": 128, "t4": 40}


class Choice(NamedTuple):
    """An engine, as far as its workspace is concerned.

    Attributes:
        family: what it keeps: a key of `cudnn_workspace.FAMILIES`; or one of `SPLIT_BASES`
            (copies, and `value` partial results), `needed and more` (copies, and `value` bytes),
            `share of x+w+y` (`value` of them), `bytes` (`value`).
        small: what it keeps beside that, a key of `cudnn_workspace._SMALL`.
        value: a number that some families need.
    """

    family: str
    small: str = "none"
    value: float = 0.0


def sampled_gpu(gpu: GpuSpec) -> str:
    """Return the GPU whose samples stand for another: of the same architecture if there is one.

    cuDNN has heuristics for each architecture; the number of multiprocessors is a minor matter.
    Architectures after Hopper were not sampled: those of data centres count as Hopper, the others
    as Ada. Before Turing there are tensor cores in Volta only, which is taken for Turing; older
    ones are too, though they have none (their float16 is conservative).
    """
    major, minor = gpu.capability
    if major in (9, 10, 11):
        return "h100"
    if major >= 12 or (major, minor) == (8, 9):
        return "rtx4090"
    if (major, minor) == (8, 0):
        return "a100"
    return "rtx3090" if major == 8 else "t4"


def tree_key(problem: ConvolutionProblem) -> str:
    """Return the name of a GPU's trees for a convolution."""
    width = "float32" if problem.dtype == torch.float32 else "half"
    layout = "channels_last" if problem.channels_last else "contiguous"
    depthwise = " depthwise" if problem.is_depthwise else ""
    return f"{problem.kind} {width} {layout}{depthwise}"


def features(p: ConvolutionProblem, multiprocessors: int) -> list[float]:
    """Return what the trees look at.

    Args:
        p: the call.
        multiprocessors: of the GPU whose trees they are.
    """
    batch, inner, outer, groups = p.batch, p.group_channels, p.group_out_channels, p.groups
    pixels, out_pixels, taps, steps = p.pixels, p.out_pixels, p.taps, math.prod(p.stride)
    # The matrix product that the pass is: rows x columns, summed over the depth.
    if p.kind == "forward":
        m, n, k = batch * out_pixels, outer, inner * taps
    elif p.kind == "input_gradient":
        m, n, k = batch * pixels, inner, outer * taps
    else:
        m, n, k = outer, inner * taps, batch * out_pixels
    tiles = {
        (rows, columns): -(-m // rows) * -(-n // columns) * groups
        for rows, columns in ((128, 128), (64, 64), (256, 128), (128, 64))
    }
    waves = tiles[128, 128] / multiprocessors
    weights = p.out_channels * inner * taps
    x, y = batch * p.channels * pixels, batch * p.out_channels * out_pixels
    operations = batch * out_pixels * weights
    multiple = 16 // p.element_size
    return [
        batch, inner, outer, groups, pixels, out_pixels, taps,
        max(p.kernel), min(p.kernel), p.kernel[-1], p.kernel[0], max(p.stride),
        p.stride[-1], max(p.dilation), len(p.size), p.padding[-1], max(p.padding),
        p.size[-1], p.size[0], p.out_size[-1], inner % 8, outer % 8,
        inner % 64, outer % 64, pixels % 8, out_pixels % 8,
        p.size[-1] % 8, p.out_size[-1] % 8, batch % 8, batch * pixels, batch * out_pixels,
        inner * taps, outer * taps, weights, operations, x, y, inner / outer,
        batch * out_pixels / weights, p.dtype == torch.bfloat16, p.kernel == p.stride,
        taps / steps, taps == 1 == steps, m, n, k,
        tiles[128, 128], waves / math.ceil(waves), tiles[256, 128], tiles[64, 64],
        tiles[128, 64], waves, k / tiles[128, 128], k / tiles[64, 64],
        -(-inner // multiple) * multiple / inner, -(-outer // multiple) * multiple / outer,
        x + y + weights, operations / (x + y + weights), (x + y) / weights, min(inner, outer),
        max(inner, outer), x / y, p.padding[-1] * 2 + 1 == p.kernel[-1],
        max(x, y) * p.element_size, batch * groups, batch * out_pixels % 128,
        batch * out_pixels % 64, batch * p.out_size[-1], m / n,
    ]  # fmt: skip


class _Grid(NamedTuple):
    """What the trees of a GPU have in common.

    Attributes:
        borders: of each feature, where its bins end; ascending.
        labels: (family, small) of each label.
    """

    borders: list[array[float]]
    labels: list[tuple[str, str]]


class _Tree(NamedTuple):
    """A decision tree, its nodes breadth first.

    Attributes:
        feature: what each node asks for, `LEAF` for a leaf.
        limit: the last bin that goes to the left, of each node but the leaves.
        answer: the low bytes of the answers of the leaves, then the high bytes.
        inner: how many nodes before each node are not leaves: node n has the limit inner[n], and
            the children 2 inner[n] + 1 and 2 inner[n] + 2; or it is the leaf n - inner[n].
    """

    feature: bytes
    limit: bytes
    answer: bytes
    inner: Sequence[int]

    def answer_for(self, bins: bytes) -> int:
        """Return the number of the answer for a row of bins."""
        feature, limit, inner, node = self.feature, self.limit, self.inner, 0
        while (asked := feature[node]) != LEAF:
            before = inner[node]
            node = 2 * before + (1 if bins[asked] <= limit[before] else 2)
        leaf = node - inner[node]
        return self.answer[leaf] + 256 * self.answer[leaf + len(self.answer) // 2]


class _Forest(NamedTuple):
    trees: list[_Tree]
    answers: list[tuple[int, float]]  # the index of a label, and a value


def _unpacked(packed: bytes) -> _Forest:
    """Read a member of the data file.

    It starts with the numbers of answers, of trees, and of the leaves of each tree; then come
    labels and values of the answers, then features, limits and answers of each tree.
    """
    answers, count = struct.unpack_from("<II", packed)
    leaves = struct.unpack_from(f"<{count}I", packed, 8)
    at = 8 + 4 * count
    labels = struct.unpack_from(f"<{answers}B", packed, at)
    values = struct.unpack_from(f"<{answers}f", packed, at + answers)
    at += 5 * answers
    trees = []
    for n in leaves:
        feature = packed[at : (at := at + 2 * n - 1)]
        limit = packed[at : (at := at + n - 1)]
        answer = packed[at : (at := at + 2 * n)]
        inner = array("I", accumulate(feature.translate(_IS_INNER), initial=0))
        trees.append(_Tree(feature, limit, answer, inner))
    return _Forest(trees, list(zip(labels, values, strict=True)))


_IS_INNER = bytes(node != LEAF for node in range(256))


@lru_cache(maxsize=1)
def _archive() -> zipfile.ZipFile:
    data = resources.files(__package__).joinpath(DATA_FILE).read_bytes()
    return zipfile.ZipFile(io.BytesIO(data))


@lru_cache(maxsize=8)
def _grid(gpu: str) -> _Grid:
    loaded = json.loads(_archive().read(f"{gpu}/grid"))
    borders = [array("f", feature) for feature in loaded["borders"]]
    return _Grid(borders, [(family, small) for family, small in loaded["labels"]])


@lru_cache(maxsize=64)
def _forest(gpu: str, key: str) -> _Forest:
    try:
        return _unpacked(_archive().read(f"{gpu}/{key}"))
    except KeyError:  # of rare kinds of depthwise convolutions there may be no samples
        return _unpacked(_archive().read(f"{gpu}/{key.removesuffix(' depthwise')}"))


def choices(problem: ConvolutionProblem, gpu: GpuSpec) -> list[Choice]:
    """Return the choice of each tree for a convolution."""
    name = sampled_gpu(gpu)
    if problem.dtype == torch.float32 and not gpu.tf32_convolutions:
        name = "t4"  # no engine with tensor cores may be used: as if there were none for float32
    grid, forest = _grid(name), _forest(name, tree_key(problem))
    bins = bytes(map(bisect_left, grid.borders, features(problem, MULTIPROCESSORS[name])))
    found = [forest.answers[tree.answer_for(bins)] for tree in forest.trees]
    return [Choice(*grid.labels[label], value) for label, value in found]

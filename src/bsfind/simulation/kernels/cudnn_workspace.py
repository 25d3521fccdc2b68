"""Bytes of workspace that cuDNN asks for in a convolution.

cuDNN ranks its engines by a heuristic, PyTorch runs the first that works (`run_single_conv` of
aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.13), with a workspace of the size that this engine
names. The sizes follow from what the engines keep there, which was read off the plans of cuDNN 9.20:

* Kernels for tensor cores want the channel as the fastest dimension, and a number of channels that
  is a multiple of 16 bytes. What comes otherwise is copied: x, w and y, each padded.
* No tensor of such a kernel has more than 2^31 elements: the batch is cut in parts, and the copies
  are those of a part.
* Groups are padded to the power of two above the larger of their channel counts, or unpadded with
  8 groups at a time, depending on the kernel.
* Weight gradients whose sum over the batch is split keep a partial result in float32 per part.
* Kernels for float32 without tensor cores transform 3x3 convolutions (Winograd): 2.25 times as much.
* Pointwise convolutions can be plain matrix products: no workspace, but for the weight gradient,
  which has a partial result per sample.

So a size is exact once the *family* of the engine is known, but cuDNN's ranking is no formula:
`cudnn_engines` has decision trees that were fitted to its choices. benchmarks/convolution_workspaces.py
tells how often they are right.

Not modelled: `torch.backends.cudnn.benchmark`, which runs all engines once, each with its
workspace, and keeps the fastest, whose identity only a GPU knows (the answer here is the
heuristic's first choice); deterministic algorithms, which rule out some engines of the weight
gradient; `TORCH_CUDNN_USE_HEURISTIC_MODE_B` and the interface of cuDNN 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import median_low

import torch

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cudnn_engines import Choice, choices
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem

_MODELLED_TYPES = (torch.float32, torch.float16, torch.bfloat16)

# Elements that a tensor of one kernel may have.
_INDEX_LIMIT = 2**31

# Groups that a kernel without padding takes at a time.
_SLICE = 8

# Of an engine that is not understood: 99 of 100 such samples keep less than this multiple of the
# three tensors, and a leaf's rare extreme must not stand for its neighbours.
_LARGEST_SHARE = 5

# Bytes beside the copies, where there are any: alignment, descriptors, a semaphore.
_SMALL = {"none": 0, "alignment": 147, "tables": 2048}


@dataclass(frozen=True)
class Copies:
    """Bytes of the copies that an engine may keep.

    Attributes:
        x, w, y: padded, for the batch or the part of it that fits.
        plain_x, plain_w, plain_y: without padding.
        slice_x, slice_w, slice_y: of 8 groups.
        pads_x, pads_y: whether padding changes the number of channels.
    """

    x: int
    w: int
    y: int
    plain_x: int
    plain_w: int
    plain_y: int
    slice_x: int
    slice_w: int
    slice_y: int
    pads_x: bool
    pads_y: bool


def _padded_channels(problem: ConvolutionProblem) -> tuple[int, int]:
    """Return the channels of a group of x and of y as kernels for tensor cores have them."""
    multiple = 16 // problem.element_size
    inner, outer = problem.group_channels, problem.group_out_channels
    if problem.groups == 1:
        return _round_up(inner, multiple), _round_up(outer, multiple)
    both = max(4, 1 << (max(inner, outer) - 1).bit_length())
    return both, both


def _part(problem: ConvolutionProblem, channels: int, out_channels: int) -> int:
    """Return the number of samples that one kernel can address."""
    largest = max(channels * problem.pixels, out_channels * problem.out_pixels) * problem.groups
    if problem.batch * largest <= _INDEX_LIMIT:
        return problem.batch
    return max(1, _INDEX_LIMIT // largest)


def copies(problem: ConvolutionProblem) -> Copies:
    """Return the sizes of the copies of a convolution's tensors."""
    p, item, groups = problem, problem.element_size, problem.groups
    inner, outer = p.group_channels, p.group_out_channels
    padded_inner, padded_outer = _padded_channels(p)
    part = _part(p, padded_inner, padded_outer)
    plain_part = _part(p, inner, outer)
    multiple, slices = 16 // item, min(groups, _SLICE)
    slice_inner, slice_outer = _round_up(inner, multiple), _round_up(outer, multiple)
    return Copies(
        x=part * p.pixels * padded_inner * groups * item,
        w=padded_outer * groups * padded_inner * p.taps * item,
        y=part * p.out_pixels * padded_outer * groups * item,
        plain_x=plain_part * p.pixels * p.channels * item,
        plain_w=p.out_channels * inner * p.taps * item,
        plain_y=plain_part * p.out_pixels * p.out_channels * item,
        slice_x=p.batch * p.pixels * slice_inner * slices * item,
        slice_w=slice_outer * slices * slice_inner * p.taps * item,
        slice_y=p.batch * p.out_pixels * slice_outer * slices * item,
        pads_x=padded_inner != inner,
        pads_y=padded_outer != outer,
    )


def _needed(p: ConvolutionProblem, c: Copies) -> int:
    """Copy what is not yet as the kernel wants it."""
    if p.channels_last:
        return c.x * c.pads_x + c.y * c.pads_y + c.w * (c.pads_x or c.pads_y)
    # A pointwise w is the same in both memory formats.
    return c.x + c.y + (0 if p.taps == 1 and not (c.pads_x or c.pads_y) else c.w)


def _plain(p: ConvolutionProblem, c: Copies) -> int:
    return c.plain_x + c.plain_y + (0 if p.taps == 1 else c.plain_w)


def _covered(p: ConvolutionProblem) -> int:
    """Return how many positions of x the windows of y cover."""
    return math.prod(
        min(size, (out - 1) * stride + dilation * (kernel - 1) + 1 - padding)
        for size, out, stride, dilation, kernel, padding in zip(
            p.size, p.out_size, p.stride, p.dilation, p.kernel, p.padding, strict=True
        )
    )


def _cropped(p: ConvolutionProblem, c: Copies) -> int:
    """Copy of x only what the windows of y cover (input gradient of patches)."""
    return c.x // p.pixels * _covered(p) + c.w + c.y


def _plain_cropped(p: ConvolutionProblem, c: Copies) -> int:
    return c.plain_x // p.pixels * _covered(p) + c.plain_w + c.plain_y


def _phases(p: ConvolutionProblem, c: Copies) -> int:
    """Split a strided input gradient in dense convolutions, one for each position in a stride.

    x is extended to whole strides, w to whole strides too, and y by one where its padding would
    not be the same on both sides.
    """
    x, w, y = 1, c.w, 1
    for size, out, stride, kernel in zip(p.size, p.out_size, p.stride, p.kernel, strict=True):
        steps, taps = -(-size // stride), -(-kernel // stride)
        x *= steps * stride
        w = w // kernel * taps * stride
        y *= out + (steps - out + taps - 1) % 2
    return c.x // p.pixels * x + w + c.y // p.out_pixels * y


def _partial(p: ConvolutionProblem, c: Copies) -> int:
    """Return the bytes of one partial weight gradient in float32, padded."""
    return c.w // p.element_size * 4


def _plain_partial(p: ConvolutionProblem, c: Copies) -> int:
    return c.plain_w // p.element_size * 4


# Outputs that a tile of Winograd's algorithm has in a direction, by the size of the kernel.
_WINOGRAD_TILES: Mapping[tuple[int, ...], int] = {(3, 3): 4, (5, 5): 9}


def _winograd(p: ConvolutionProblem) -> int:
    """Return the bytes of the tensors that Winograd's algorithm transforms, in tiles.

    The batch counts as a multiple of 16, but for the weight gradient.
    """
    outputs = _WINOGRAD_TILES.get(p.kernel)
    if outputs is None:
        return 0
    size = p.size if p.kind == "input_gradient" else p.out_size
    batch = p.batch if p.kind == "weight_gradient" else _round_up(p.batch, 16)
    tiles = batch * math.prod(-(-n // outputs) for n in size)
    numbers = (outputs + p.kernel[0] - 1) * (outputs + p.kernel[0] - 1)
    weights = p.group_channels * p.out_channels
    return numbers * (tiles * (p.channels + p.out_channels) + weights) * p.element_size


def _winograd_weights(p: ConvolutionProblem, c: Copies) -> int:
    """Return the bytes of a 3x3 w for tiles of 2x2 outputs, before and after the transform."""
    return c.plain_w + c.plain_w // 9 * 16 if p.kernel == (3, 3) else 0


# Sides of what FFT kernels transform at once: tiles of images, of rows, and the least whole image.
_FFT_TILE, _FFT_ROW, _FFT_LEAST = 32, 256, 16


def _spectrum(height: int, width: int) -> int:
    """Return the bytes of the complex64 spectrum of real numbers: half of it is redundant."""
    return 8 * height * (width // 2 + 1)


def _planes(p: ConvolutionProblem) -> tuple[int, int, int]:
    """Return how many images there are in x, w and y, over batch and channels."""
    return p.batch * p.channels, p.out_channels * p.group_channels, p.batch * p.out_channels


def _fft_tiles(p: ConvolutionProblem) -> int:
    """Return the bytes of the spectra of w and of tiles of x and y, of which two are in work."""
    if len(p.size) != 2:
        return 0
    x, w, y = _planes(p)
    of_rows = p.size[0] == 1
    side = _FFT_ROW if of_rows else _FFT_TILE
    size = p.size if p.kind == "input_gradient" else p.out_size
    extent = max(n + d * (k - 1) for n, d, k in zip(size, p.dilation, p.kernel, strict=True))
    tiles = 1 if extent <= side else 2
    return _spectrum(1 if of_rows else side, side) * (tiles * (x + y) + w)


def _fft(p: ConvolutionProblem, c: Copies) -> int:
    """Return the bytes of the spectra of x and w as large as the image, before and after."""
    if len(p.size) != 2 or p.kind == "weight_gradient":
        return 0
    x, w, y = _planes(p)
    size = p.size if p.kind == "forward" else p.out_size
    side = max(_FFT_LEAST, 1 << (max(*size, *p.kernel) - 1).bit_length())
    images = x if p.kind == "forward" else y
    return 2 * _spectrum(side, side) * (images + w) + c.plain_w


# What an engine keeps in its workspace. The names are those of the fitted trees.
FAMILIES: Mapping[str, Callable[[ConvolutionProblem, Copies], int]] = {
    "needed": _needed,
    "nothing": lambda p, c: 0,
    "slices x+w+y": lambda p, c: c.slice_x + c.slice_w + c.slice_y,
    "slices x+y": lambda p, c: c.slice_x + c.slice_y,
    "x+w+y": lambda p, c: c.x + c.w + c.y,
    "x+w": lambda p, c: c.x + c.w,
    "plain x+w+y": _plain,
    "plain x+y": lambda p, c: c.plain_x + c.plain_y,
    "phases": _phases,
    "cropped": _cropped,
    "plain cropped": _plain_cropped,
    "w+y": lambda p, c: c.w + c.y,
    "partial per sample": lambda p, c: p.batch * _plain_partial(p, c),
    "partial": _partial,
    "plain partial": _plain_partial,
    "x+y+partial": lambda p, c: c.x + c.y + _partial(p, c),
    "x": lambda p, c: c.x,
    "y": lambda p, c: c.y,
    "plain w": lambda p, c: c.plain_w,
    "plain x": lambda p, c: c.plain_x,
    "w": lambda p, c: c.w,
    "winograd": lambda p, c: _winograd(p),
    "winograd and copies": lambda p, c: _winograd(p) + c.x + c.w + c.y,
    "winograd weights": _winograd_weights,
    "winograd weights and x+w+y": lambda p, c: (
        _winograd_weights(p, c) + c.plain_x + c.plain_w + c.plain_y
    ),
    "fft": _fft,
    "fft tiles": lambda p, c: _fft_tiles(p),
    "fft tiles and x+w+y": lambda p, c: _fft_tiles(p) + c.plain_x + c.plain_w + c.plain_y,
    "fft tiles and x+w": lambda p, c: _fft_tiles(p) + c.plain_x + c.plain_w,
    "float32 x+w+y": lambda p, c: 4 // p.element_size * (c.plain_x + c.plain_w + c.plain_y),
    "float32 x+y": lambda p, c: 4 // p.element_size * (c.plain_x + c.plain_y),
}


def _is_depthwise(problem: ConvolutionProblem) -> bool:
    return problem.groups > 1 == problem.group_channels


def copies_base(problem: ConvolutionProblem, c: Copies) -> int:
    """Return the copies of an engine that splits its sum and wants the other memory format."""
    return c.x + c.y


def plain_copies_base(problem: ConvolutionProblem, c: Copies) -> int:
    """Return the copies of an engine that splits its sum and pads nothing."""
    return c.plain_x + c.plain_y


def split_base(problem: ConvolutionProblem, c: Copies) -> int:
    """Return the copies of an engine that splits its sum."""
    if problem.groups == 1:
        return _needed(problem, c)
    if _is_depthwise(problem):
        return 0
    multiple = 16 // problem.element_size
    aligned = problem.group_channels % multiple == 0 == problem.group_out_channels % multiple
    if problem.channels_last and aligned:
        return 0
    return c.slice_x + c.slice_w + c.slice_y


# What an engine keeps beside partial results.
SPLIT_BASES: Mapping[str, Callable[[ConvolutionProblem, Copies], int]] = {
    "split": split_base,
    "copies and split": copies_base,
    "plain copies and split": plain_copies_base,
}


def partial_bytes(problem: ConvolutionProblem, c: Copies, base: str = "split") -> int:
    """Return the bytes of one partial result, in float32, of an engine that splits its sum."""
    if base == "plain copies and split":
        return _plain_partial(problem, c)
    if problem.kind == "forward":
        return c.y // problem.element_size * 4
    if problem.kind == "input_gradient":
        return c.x // problem.element_size * 4
    if problem.groups == 1:
        return _partial(problem, c)
    if _is_depthwise(problem):
        return _plain_partial(problem, c)
    return c.slice_w // problem.element_size * 4


def _terms(problem: ConvolutionProblem) -> int:
    """Return how many products each result is the sum of: no sum has more parts."""
    if problem.kind == "weight_gradient":
        return problem.batch * problem.out_pixels
    is_forward = problem.kind == "forward"
    return problem.taps * (problem.group_channels if is_forward else problem.group_out_channels)


def _bytes_of(problem: ConvolutionProblem, c: Copies, choice: Choice) -> int:
    if choice.family in SPLIT_BASES:
        base = SPLIT_BASES[choice.family](problem, c)
        partial = partial_bytes(problem, c, choice.family)
        parts = min(choice.value, _terms(problem))
        return int(base + parts * partial) + _SMALL["alignment"]
    if choice.family == "needed and more":
        return _needed(problem, c) + int(choice.value)
    if choice.family == "bytes":
        return int(choice.value)
    if choice.family == "share of x+w+y":
        most = _LARGEST_SHARE * (c.plain_x + c.plain_w + c.plain_y)
        return min(int(choice.value * (c.x + c.w + c.y)), most)
    return FAMILIES[choice.family](problem, c) + _SMALL[choice.small]


@lru_cache(maxsize=65536)
def workspace_bytes(problem: ConvolutionProblem, gpu: GpuSpec) -> int:
    """Return the workspace that cuDNN asks for.

    Args:
        problem: the call.
        gpu: where; the trees of the nearest GPU that was sampled stand for one that was not.

    Returns:
        Bytes, 0 for none.
    """
    if problem.dtype not in _MODELLED_TYPES:
        return 0  # float64: kernels that work in place, in all plans that were seen
    if 0 in (problem.batch, problem.channels, problem.out_channels, problem.pixels):
        return 0
    c = copies(problem)
    return median_low(_bytes_of(problem, c, choice) for choice in choices(problem, gpu))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""Bytes of workspace that cuDNN asks for in a convolution.

cuDNN ranks its engines by a heuristic, PyTorch runs the first that works (`run_single_conv` of
aten/src/ATen/native/cudnn/Conv_v8.cpp, torch 2.13), with a workspace of the size that this engine
names. The sizes follow from what the engines keep there, read off the plans of cuDNN 9.20:

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

A size is exact once the *family* of the engine is known, but cuDNN's ranking is not a formula:
`cudnn_engines` has decision trees that were fitted to its choices. docs/accuracy.md tells how often
they are right.

Not modelled here, but where cuDNN itself can be asked (`convolution_workspace`): deterministic algorithms,
which rule out some engines of the weight gradient; `torch.backends.cudnn.benchmark`;
`TORCH_CUDNN_USE_HEURISTIC_MODE_B`. Not modelled at all: the interface of cuDNN 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median_low

import torch

from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.kernels.cudnn_engines import Choice, choices
from bsfind.simulation.kernels.cudnn_problem import ConvolutionProblem, Copies, copies

_MODELLED_TYPES = (torch.float32, torch.float16, torch.bfloat16)

# The most that an engine that is not understood keeps, as a multiple of the three tensors: 99 of 100
# samples keep less, and the rare extreme of a leaf must not stand for its neighbours.
_LARGEST_SHARE = 5

# Bytes that an engine keeps beside the copies: alignment, descriptors, a semaphore.
_SMALL = {"none": 0, "alignment": 147, "tables": 2048}


def _needed(p: ConvolutionProblem, c: Copies) -> int:
    """Copy the tensors that the kernel cannot read as they are."""
    x, w, y = c.padded
    pads_w = c.pads_x or c.pads_y
    if p.channels_last:
        return x * c.pads_x + y * c.pads_y + w * pads_w
    # A pointwise w is the same in both memory formats.
    return x + y + (0 if p.taps == 1 and not pads_w else w)


def _cropped_x(p: ConvolutionProblem, nbytes: int) -> int:
    """Return how many of the bytes of x the windows of y cover (input gradient of patches)."""
    covered: int = math.prod(
        min(size, (out - 1) * stride + dilation * (kernel - 1) + 1 - padding)
        for size, out, stride, dilation, kernel, padding in zip(
            p.size, p.out_size, p.stride, p.dilation, p.kernel, p.padding, strict=True
        )
    )
    return nbytes // p.pixels * covered


def _phases(p: ConvolutionProblem, c: Copies) -> int:
    """Split a strided input gradient in dense convolutions, one for each position in a stride.

    x is extended to whole strides, w to whole strides too, and y by one where its padding would
    not be the same on both sides.
    """
    x, w, y = 1, c.padded.w, 1
    for size, out, stride, kernel in zip(p.size, p.out_size, p.stride, p.kernel, strict=True):
        steps, taps = -(-size // stride), -(-kernel // stride)
        x *= steps * stride
        w = w // kernel * taps * stride
        y *= out + (steps - out + taps - 1) % 2
    return c.padded.x // p.pixels * x + w + c.padded.y // p.out_pixels * y


def _float32(p: ConvolutionProblem, nbytes: int) -> int:
    return nbytes // p.element_size * 4


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
    batch = p.batch if p.kind == "weight_gradient" else -(-p.batch // 16) * 16
    tiles = batch * math.prod(-(-n // outputs) for n in size)
    numbers = (outputs + p.kernel[0] - 1) * (outputs + p.kernel[0] - 1)
    weights = p.group_channels * p.out_channels
    return numbers * (tiles * (p.channels + p.out_channels) + weights) * p.element_size


def _winograd_weights(p: ConvolutionProblem, c: Copies) -> int:
    """Return the bytes of a 3x3 w for tiles of 2x2 outputs, before and after the transform."""
    return c.plain.w + c.plain.w // 9 * 16 if p.kernel == (3, 3) else 0


# Sides of what FFT kernels transform at once: tiles of images, of rows, and the least whole image.
_FFT_TILE, _FFT_ROW, _FFT_LEAST = 32, 256, 16


def _spectrum(height: int, width: int) -> int:
    """Return the bytes of the complex64 spectrum of real numbers: half of it is redundant."""
    return 8 * height * (width // 2 + 1)


def _planes(p: ConvolutionProblem) -> tuple[int, int, int]:
    """Return how many images there are in x, w and y, over batch and channels."""
    return p.batch * p.channels, p.out_channels * p.group_channels, p.batch * p.out_channels


def _fft_tiles(p: ConvolutionProblem) -> int:
    """Return the bytes of the spectra of w and of the tiles of x and y that are in work, at most two."""
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
    return 2 * _spectrum(side, side) * (images + w) + c.plain.w


# What an engine keeps in its workspace. The names are those of the fitted trees.
FAMILIES: Mapping[str, Callable[[ConvolutionProblem, Copies], int]] = {
    "needed": _needed,
    "nothing": lambda p, c: 0,
    "slices x+w+y": lambda p, c: sum(c.slices),
    "slices x+y": lambda p, c: c.slices.x + c.slices.y,
    "x+w+y": lambda p, c: sum(c.padded),
    "x+w": lambda p, c: c.padded.x + c.padded.w,
    "plain x+w+y": lambda p, c: c.plain.x + c.plain.y + (0 if p.taps == 1 else c.plain.w),
    "plain x+y": lambda p, c: c.plain.x + c.plain.y,
    "phases": _phases,
    "cropped": lambda p, c: _cropped_x(p, c.padded.x) + c.padded.w + c.padded.y,
    "plain cropped": lambda p, c: _cropped_x(p, c.plain.x) + c.plain.w + c.plain.y,
    "w+y": lambda p, c: c.padded.w + c.padded.y,
    "partial per sample": lambda p, c: p.batch * _float32(p, c.plain.w),
    "partial": lambda p, c: _float32(p, c.padded.w),
    "plain partial": lambda p, c: _float32(p, c.plain.w),
    "x+y+partial": lambda p, c: c.padded.x + c.padded.y + _float32(p, c.padded.w),
    "x": lambda p, c: c.padded.x,
    "y": lambda p, c: c.padded.y,
    "plain w": lambda p, c: c.plain.w,
    "plain x": lambda p, c: c.plain.x,
    "w": lambda p, c: c.padded.w,
    "winograd": lambda p, c: _winograd(p),
    "winograd and copies": lambda p, c: _winograd(p) + sum(c.padded),
    "winograd weights": _winograd_weights,
    "winograd weights and x+w+y": lambda p, c: _winograd_weights(p, c) + sum(c.plain),
    "fft": _fft,
    "fft tiles": lambda p, c: _fft_tiles(p),
    "fft tiles and x+w+y": lambda p, c: _fft_tiles(p) + sum(c.plain),
    "fft tiles and x+w": lambda p, c: _fft_tiles(p) + c.plain.x + c.plain.w,
    "float32 x+w+y": lambda p, c: 4 // p.element_size * sum(c.plain),
    "float32 x+y": lambda p, c: 4 // p.element_size * (c.plain.x + c.plain.y),
}


def _split_base(p: ConvolutionProblem, c: Copies) -> int:
    if p.groups == 1:
        return _needed(p, c)
    aligned = p.group_channels % p.vector == 0 == p.group_out_channels % p.vector
    return 0 if p.is_depthwise or (p.channels_last and aligned) else sum(c.slices)


# What an engine that splits its sum keeps beside the partial results: copies as they are needed, or for
# the other memory format, padded or not.
SPLIT_BASES: Mapping[str, Callable[[ConvolutionProblem, Copies], int]] = {
    "split": _split_base,
    "copies and split": lambda p, c: c.padded.x + c.padded.y,
    "plain copies and split": lambda p, c: c.plain.x + c.plain.y,
}


def partial_bytes(p: ConvolutionProblem, c: Copies, base: str = "split") -> int:
    """Return the bytes of one partial result, in float32, of an engine that splits its sum."""
    if base == "plain copies and split":
        return _float32(p, c.plain.w)
    if p.kind != "weight_gradient":
        return _float32(p, c.padded.y if p.kind == "forward" else c.padded.x)
    if p.groups == 1:
        return _float32(p, c.padded.w)
    return _float32(p, c.plain.w if p.is_depthwise else c.slices.w)


def _terms(p: ConvolutionProblem) -> int:
    """Return how many products each result is the sum of: no sum has more parts."""
    if p.kind == "weight_gradient":
        return p.batch * p.out_pixels
    return p.taps * (p.group_channels if p.kind == "forward" else p.group_out_channels)


def _bytes_of(p: ConvolutionProblem, c: Copies, choice: Choice) -> int:
    if choice.family in SPLIT_BASES:
        base = SPLIT_BASES[choice.family](p, c)
        parts = min(choice.value, _terms(p))
        return int(base + parts * partial_bytes(p, c, choice.family)) + _SMALL["alignment"]
    if choice.family == "needed and more":
        return _needed(p, c) + int(choice.value)
    if choice.family == "bytes":
        return int(choice.value)
    if choice.family == "share of x+w+y":
        return min(int(choice.value * sum(c.padded)), _LARGEST_SHARE * sum(c.plain))
    return FAMILIES[choice.family](p, c) + _SMALL[choice.small]


def fitted_workspace_bytes(problem: ConvolutionProblem, gpu: GpuSpec) -> int:
    """Return the workspace that cuDNN asks for by the trees, in bytes; 0 for none.

    Args:
        problem: the call.
        gpu: where; the trees of the nearest GPU that was sampled stand for one that was not. The median of
            the trees' answers counts; if it is cautious, their upper quartile.
    """
    found = sorted(workspaces_by_tree(problem, gpu))
    return found[3 * len(found) // 4] if gpu.is_cautious else median_low(found)


def workspaces_by_tree(problem: ConvolutionProblem, gpu: GpuSpec) -> list[int]:
    """Return the workspace by each of the trees."""
    if problem.dtype not in _MODELLED_TYPES:
        return [0]  # float64: kernels that work in place, in all plans that were seen
    if problem.is_empty:
        return [0]
    c = copies(problem)
    return [_bytes_of(problem, c, choice) for choice in choices(problem, gpu)]

"""A convolution as cuDNN sees it: one of three passes over x, w and y, by shapes alone.

Also the sizes of the copies of these tensors that cuDNN's kernels work on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

ConvolutionPass = Literal["forward", "input_gradient", "weight_gradient"]

# Elements that a tensor of one kernel may have.
_INDEX_LIMIT = 2**31

# Groups that a kernel without padding takes at a time.
_SLICE = 8


def convolved_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Return the size in space of the output of a convolution; one number per dimension everywhere."""
    numbers = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers)


@dataclass(frozen=True, kw_only=True)
class ConvolutionProblem:
    """One call of cuDNN: y = conv(x, w), or the gradient of x or of w.

    A transposed convolution is the input gradient of the convolution whose y it reads, and its
    own input gradient is that convolution's forward pass. One-dimensional convolutions come with
    a height of 1, as PyTorch hands them over.

    Attributes:
        kind: which of the three tensors is computed.
        dtype: of all three tensors.
        channels_last: their memory format; otherwise the channel is the second slowest dimension.
        batch: N.
        channels: of x, C.
        size: of x in space, 2 or 3 numbers.
        out_channels: of y, K.
        kernel: size of w in space. The shape of w is (K, C / groups, *kernel).
        stride: one number for each dimension of space, like the next two.
        padding: on each side.
        dilation: of the kernel.
        groups: number of groups of channels.
    """

    kind: ConvolutionPass
    dtype: torch.dtype
    channels_last: bool
    batch: int
    channels: int
    size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @cached_property
    def out_size(self) -> tuple[int, ...]:
        """Size of y in space."""
        return convolved_size(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @cached_property
    def pixels(self) -> int:
        """Positions in space of x."""
        return math.prod(self.size)

    @cached_property
    def out_pixels(self) -> int:
        """Positions in space of y."""
        return math.prod(self.out_size)

    @cached_property
    def taps(self) -> int:
        """Positions in space of w."""
        return math.prod(self.kernel)

    @property
    def group_channels(self) -> int:
        """Channels of x in a group."""
        return self.channels // self.groups

    @property
    def group_out_channels(self) -> int:
        """Channels of y in a group."""
        return self.out_channels // self.groups

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return 0 in (self.batch, self.channels, self.out_channels, self.pixels)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel of x has filters of its own."""
        return self.groups > 1 == self.group_channels

    @property
    def vector(self) -> int:
        """Channels that kernels for tensor cores read at a time: 16 bytes."""
        return 16 // self.element_size


class Tensors(NamedTuple):
    """Bytes of x, w and y."""

    x: int
    w: int
    y: int


class Copies(NamedTuple):
    """The copies that an engine may keep.

    Attributes:
        padded: with padded channels, for the batch or the part of it that one kernel can address.
        plain: the same without padding.
        slices: of 8 groups.
        pads_x, pads_y: whether padding changes the number of channels.
    """

    padded: Tensors
    plain: Tensors
    slices: Tensors
    pads_x: bool
    pads_y: bool


def copies(p: ConvolutionProblem) -> Copies:
    """Return the sizes of the copies of a convolution's tensors."""
    inner, outer = p.group_channels, p.group_out_channels
    round_inner, round_outer = _round_up(inner, p.vector), _round_up(outer, p.vector)
    padded_inner, padded_outer = round_inner, round_outer
    if p.groups > 1:
        padded_inner = padded_outer = max(4, 1 << (max(inner, outer) - 1).bit_length())
    return Copies(
        padded=_tensors(
            p, _part(p, padded_inner, padded_outer), padded_inner, padded_outer, p.groups
        ),
        plain=_tensors(p, _part(p, inner, outer), inner, outer, p.groups),
        slices=_tensors(p, p.batch, round_inner, round_outer, min(p.groups, _SLICE)),
        pads_x=padded_inner != inner,
        pads_y=padded_outer != outer,
    )


def _tensors(p: ConvolutionProblem, batch: int, inner: int, outer: int, groups: int) -> Tensors:
    x, y = batch * p.pixels * inner, batch * p.out_pixels * outer
    of_group = Tensors(x, outer * inner * p.taps, y)
    return Tensors(*(elements * groups * p.element_size for elements in of_group))


def _part(p: ConvolutionProblem, inner: int, outer: int) -> int:
    """Return how many samples one kernel can address, with so many channels in a group."""
    largest = max(inner * p.pixels, outer * p.out_pixels) * p.groups
    return p.batch if p.batch * largest <= _INDEX_LIMIT else max(1, _INDEX_LIMIT // largest)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""A convolution as cuDNN sees it: one of three passes over x, w and y, by shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

ConvolutionPass = Literal["forward", "input_gradient", "weight_gradient"]


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
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )

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

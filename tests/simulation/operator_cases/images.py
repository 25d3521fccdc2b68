"""Pooling and upsampling."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F  # noqa: N812 - as everybody names it

from operator_cases.tensors import (
    FLOATS,
    Case,
    backward,
    group,
    new,
)


@group
def pooling() -> Iterator[Case]:
    for dtype in FLOATS:
        for layout in ("contiguous", "channels_last", "transposed"):
            for sizes in ((2, 16, 32, 32), (4, 64, 55, 57), (3, 5, 7, 7)):
                x = new(*sizes, dtype=dtype, layout=layout)
                for grad in ("contiguous", "channels_last", "transposed"):
                    for function in (
                        partial(F.max_pool2d, kernel_size=3, stride=2, padding=1),
                        partial(F.max_pool2d, kernel_size=2),
                        partial(F.avg_pool2d, kernel_size=2),
                        partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1),
                        partial(F.adaptive_avg_pool2d, output_size=1),
                        partial(F.adaptive_avg_pool2d, output_size=7),
                        partial(F.adaptive_avg_pool2d, output_size=(3, 5)),
                        partial(F.adaptive_max_pool2d, output_size=1),
                        partial(F.adaptive_max_pool2d, output_size=3),
                        partial(F.lp_pool2d, norm_type=2, kernel_size=2),
                        partial(F.fractional_max_pool2d, kernel_size=2, output_size=3),
                        partial(F.unfold, kernel_size=3, padding=1),
                        partial(F.pixel_shuffle, upscale_factor=1),
                    ):
                        yield partial(backward, function, x, grad_layout=grad)
                yield partial(
                    backward,
                    lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
                    x,
                )
            for sizes in ((2, 8, 8, 16, 16), (1, 3, 5, 9, 9)):
                x = new(*sizes, dtype=dtype, layout=layout)
                for grad in ("contiguous", "channels_last"):
                    for function in (
                        partial(F.max_pool3d, kernel_size=2),
                        partial(F.avg_pool3d, kernel_size=2),
                        partial(F.adaptive_avg_pool3d, output_size=1),
                        partial(F.adaptive_avg_pool3d, output_size=3),
                        partial(F.adaptive_max_pool3d, output_size=3),
                    ):
                        yield partial(backward, function, x, grad_layout=grad)
            for sizes in ((2, 16, 100), (16, 100)):
                x = new(*sizes, dtype=dtype, layout=layout)
                for function in (
                    partial(F.max_pool1d, kernel_size=2),
                    partial(F.avg_pool1d, kernel_size=2),
                    partial(F.adaptive_avg_pool1d, output_size=1),
                    partial(F.adaptive_max_pool1d, output_size=4),
                    partial(F.adaptive_avg_pool1d, output_size=7),
                ):
                    yield partial(backward, function, x)
            x = new(4, 9 * 8, 64, dtype=dtype)
            yield partial(backward, partial(F.fold, output_size=8, kernel_size=3, padding=1), x)


@group
def upsampling() -> Iterator[Case]:
    for dtype in FLOATS:
        for layout in ("contiguous", "channels_last", "transposed"):
            for grad in ("contiguous", "channels_last", "transposed"):
                for channels in (3, 4, 64):
                    x = new(2, channels, 16, 17, dtype=dtype, layout=layout)
                    for mode in ("nearest", "bilinear", "bicubic", "nearest-exact", "area"):
                        for size in (32, 7):
                            yield partial(
                                backward,
                                partial(F.interpolate, size=size, mode=mode),
                                x,
                                grad_layout=grad,
                            )
                    for mode in ("bilinear", "bicubic"):
                        yield partial(
                            backward,
                            partial(F.interpolate, size=9, mode=mode, antialias=True),
                            x,
                            grad_layout=grad,
                        )
                    y = new(2, channels, 4, 8, 9, dtype=dtype, layout=layout)
                    for mode in ("nearest", "trilinear"):
                        yield partial(
                            backward,
                            partial(F.interpolate, scale_factor=2, mode=mode),
                            y,
                            grad_layout=grad,
                        )
                    z = new(2, channels, 9, dtype=dtype)
                    for mode in ("nearest", "linear"):
                        yield partial(
                            backward, partial(F.interpolate, scale_factor=2, mode=mode), z
                        )
                    grid = new(2, 8, 8, 2, dtype=dtype)
                    for mode in ("nearest", "bilinear", "bicubic"):
                        yield partial(
                            backward,
                            lambda x, g, m=mode: F.grid_sample(x, g, m, align_corners=False),
                            x,
                            grid,
                            grad_layout=grad,
                        )
                    yield partial(
                        backward,
                        lambda x, g: F.grid_sample(x, g, align_corners=False),
                        y,
                        new(2, 3, 4, 5, 3, dtype=dtype),
                    )
            yield partial(
                backward,
                lambda t: F.affine_grid(t, (2, 3, 8, 9), align_corners=False),
                new(2, 2, 3, dtype=dtype),
            )

# ruff: noqa: E501 - cases bind their tensors as defaults, and are tables to read across
"""Reductions, products, transforms and elementwise operators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody names it

from operator_cases.tensors import (
    DOUBLE,
    FLOAT,
    FLOATS,
    HALF,
    LAYOUTS,
    Case,
    backward,
    group,
    new,
)


@group
def reductions() -> Iterator[Case]:
    rng = random.Random(1)
    functions: list[Callable[..., Any]] = [
        torch.sum, torch.mean, torch.amax, torch.amin, torch.linalg.vector_norm,
        torch.std, torch.var, torch.var_mean, torch.std_mean, torch.logsumexp,
        torch.norm, torch.nansum, partial(torch.linalg.vector_norm, ord=1),
        partial(torch.linalg.vector_norm, ord=float("inf")), torch.aminmax,
        partial(torch.linalg.vector_norm, ord=3), torch.ops.aten.norm.ScalarOpt_dim,
    ]  # fmt: skip

    def shape() -> list[int]:
        sizes = [1, 2, 3, 7, 8, 12, 16, 32, 49, 64, 96, 100, 197, 256, 768, 1000, 1024, 3072, 4096]
        for _ in range(100):
            found = [rng.choice(sizes) for _ in range(rng.randint(1, 4))]
            if rng.random() < 0.1:
                found[0] *= rng.randint(1, 3000)
            total = 1
            for size in found:
                total *= size
            if total < 2**29:
                return found
        return [64, 1000]

    for _ in range(1500):
        sizes = shape()
        dtype = rng.choice((*FLOATS, DOUBLE))
        x = new(*sizes, dtype=dtype, layout=rng.choice((*LAYOUTS, "swapped")))
        dims = sorted(rng.sample(range(len(sizes)), rng.randint(1, len(sizes))))
        keep = rng.random() < 0.5
        function = rng.choice(functions)
        if function is torch.norm:
            yield partial(torch.norm, x)
        elif function is torch.ops.aten.norm.ScalarOpt_dim:
            yield partial(function, x, 2, dims, keep)
        elif function is torch.aminmax:
            yield partial(function, x, dim=rng.choice([None, dims[0]]), keepdim=keep)
        else:
            yield partial(function, x, dim=dims, keepdim=keep)
        kind = rng.choice((torch.bool, torch.int64, torch.int32, torch.uint8, dtype))
        y = new(*sizes, dtype=kind, layout=rng.choice(LAYOUTS))
        whole = rng.choice((torch.sum, torch.any, torch.all, torch.max, torch.min, torch.prod,
                            torch.argmax, torch.argmin, torch.count_nonzero))  # fmt: skip
        if rng.random() < 0.5 or whole is torch.count_nonzero:
            yield partial(whole, y)
        else:
            yield partial(whole, y, dim=dims[0], keepdim=keep)
        if rng.random() < 0.1:
            yield partial(torch.sum, x, dim=dims, dtype=rng.choice((FLOAT, DOUBLE, HALF)))
            yield partial(torch.mean, x, dim=dims, dtype=rng.choice((FLOAT, DOUBLE)))
            yield partial(torch.linalg.vector_norm, x, dim=dims, dtype=DOUBLE)


@group
def large_reductions() -> Iterator[Case]:
    """Tensors that 32-bit offsets cannot address."""
    for dtype in FLOATS:
        for sizes in ((16384, 152064), (3, 40000, 30000), (2**31 + 512,), (5, 2**30)):
            x = new(*sizes, dtype=dtype)
            for function in (
                torch.sum,
                torch.mean,
                torch.amax,
                torch.linalg.vector_norm,
                torch.var,
            ):
                for dim in (0, -1, None):
                    yield partial(function, x, dim=dim) if dim is not None else partial(function, x)
            yield partial(torch.argmax, x, -1)
            yield partial(torch.max, x, 0)


@group
def softmax() -> Iterator[Case]:
    for dtype in FLOATS:
        for layout in LAYOUTS:
            for sizes in ((4, 7), (64, 1000), (8, 12, 64, 64), (2, 5, 33, 40000), (16, 30522)):
                for function in (torch.softmax, torch.log_softmax):
                    for dim in range(len(sizes)):
                        for grad in ("contiguous", "transposed"):
                            yield partial(
                                backward,
                                partial(function, dim=dim),
                                new(*sizes, dtype=dtype, layout=layout),
                                grad_layout=grad,
                            )
                    if dtype == HALF:
                        yield partial(
                            backward,
                            partial(function, dim=-1, dtype=FLOAT),
                            new(*sizes, dtype=dtype, layout=layout),
                        )
    x = new(8, 12, 64, 64)
    yield partial(torch.ops.aten._masked_softmax, x, x > 0, 3)


@group
def fft() -> Iterator[Case]:
    for sizes in ((64,), (8, 100), (4, 3, 32, 32), (2, 3, 33, 35), (2, 4, 8, 16, 16)):
        for layout in ("contiguous", "transposed"):
            x = new(*sizes, layout=layout)
            z = new(*sizes, dtype=torch.complex64, layout=layout)
            for dim in range(len(sizes)):
                for norm in ("backward", "ortho"):
                    yield partial(backward, partial(torch.fft.rfft, dim=dim, norm=norm), x)
                    yield partial(torch.fft.irfft, z, dim=dim, norm=norm)
                    yield partial(torch.fft.fft, z, dim=dim, norm=norm)
                    yield partial(torch.fft.ifft, z, dim=dim, norm=norm)
                    yield partial(torch.fft.hfft, z, dim=dim, norm=norm)
                    yield partial(torch.fft.fft, x, dim=dim, norm=norm)
                    yield partial(torch.fft.rfft, x, n=20, dim=dim, norm=norm)
            if len(sizes) >= 2:
                yield partial(backward, torch.fft.rfft2, x)
                yield partial(torch.fft.irfft2, z)
                yield partial(torch.fft.fft2, z)
                yield partial(torch.fft.irfft2, z, s=sizes[-2:], norm="ortho")
            yield partial(torch.fft.fftshift, x)
            yield z.resolve_conj
            yield z.conj().clone
            yield z.conj().resolve_conj
            yield z.abs
            yield z.angle
            yield partial(torch.complex, x, x)
            yield partial(torch.polar, x, x)
            yield partial(torch.mul, z, z.conj())
            yield partial(torch.view_as_real, z)
    yield partial(torch.stft, new(4, 16000), 512, window=new(512), return_complex=True)
    yield partial(
        torch.istft,
        new(4, 257, 100, dtype=torch.complex64),
        512,
        window=torch.ones(512, device="cuda"),
    )


@group
def activations() -> Iterator[Case]:
    functions: list[Callable[..., Any]] = [
        F.gelu, partial(F.gelu, approximate="tanh"), F.silu, F.mish, F.relu, F.relu6, F.elu, F.selu, F.celu,
        F.leaky_relu, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus, F.logsigmoid, F.tanhshrink, F.softshrink,
        F.hardshrink, F.softsign, partial(F.threshold, threshold=0.1, value=0.0),
        torch.sigmoid, torch.tanh, torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.abs, torch.sin, torch.erf,
        torch.expm1, torch.log1p, torch.square, torch.reciprocal, partial(torch.pow, exponent=3), torch.lgamma,
        torch.logit, torch.erfinv, torch.sinc, partial(torch.clamp, min=0.0), partial(torch.clamp, min=-1, max=1),
        F.normalize, F.glu, partial(F.glu, dim=0), torch.atan, torch.floor, torch.round,
    ]  # fmt: skip
    for dtype in FLOATS:
        for layout in (*LAYOUTS, "swapped"):
            for sizes in ((6,), (64, 1000), (8, 16, 34, 32)):
                x = new(*sizes, dtype=dtype, layout=layout)
                for function in functions:
                    for grad in ("contiguous", "transposed"):
                        yield partial(backward, function, x, grad_layout=grad)
                for size in (1, sizes[1] if len(sizes) > 1 else 1):
                    yield partial(backward, F.prelu, x, new(size, dtype=dtype))
                for binary in (
                    torch.add,
                    torch.sub,
                    torch.mul,
                    torch.div,
                    torch.pow,
                    torch.maximum,
                    torch.atan2,
                    torch.hypot,
                    torch.logaddexp,
                ):
                    yield partial(backward, binary, x, x)
                    yield partial(backward, binary, x, new(sizes[-1], dtype=dtype))
                    yield partial(backward, binary, x, new(*sizes))
                    yield partial(backward, binary, x, torch.zeros((), device="cuda"))
    for rows, other, width in ((10, 12, 5), (30, 26, 3), (300, 400, 64)):
        for p in (2.0, 1.0, float("inf")):
            yield partial(backward, partial(torch.cdist, p=p), new(rows, width), new(other, width))
            yield partial(
                backward, partial(torch.cdist, p=p), new(2, rows, width), new(2, other, width)
            )
            yield partial(backward, partial(F.pdist, p=p), new(rows, width))
    for dtype in FLOATS:
        for layout in ("contiguous", "channels_last"):
            x = new(4, 64, 16, 16, dtype=dtype, layout=layout)
            yield partial(backward, partial(F.pixel_shuffle, upscale_factor=2), x)
            yield partial(backward, partial(F.pixel_unshuffle, downscale_factor=2), x)
            yield partial(backward, partial(F.channel_shuffle, groups=4), x)
            yield partial(backward, partial(F.local_response_norm, size=5), x)
            yield partial(backward, partial(F.instance_norm), x)
    data = new(100, 5)
    lengths = torch.full((10,), 10, device="cuda")
    for reduce in ("sum", "max", "mean"):
        yield partial(
            backward,
            lambda d, r=reduce: torch.segment_reduce(d, r, lengths=lengths, unsafe=True),
            data,
        )

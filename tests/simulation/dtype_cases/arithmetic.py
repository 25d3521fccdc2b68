"""Element by element, reductions, linear algebra."""

from __future__ import annotations

from functools import partial

import torch
from tests.simulation.dtype_cases import case
from tests.simulation.dtype_cases.case import data

real_table = partial(case.table, others=case.REAL)

_PAIR = (data(8, 4), data(8, 4))
for name in ("add", "mul", "sub", "div", "pow", "maximum", "atan2", "fmod", "bitwise_and", "eq"):
    real_table(name, getattr(torch, name), *_PAIR)
for name in ("add", "mul", "div"):
    real_table(f"{name}, scalar tensor", getattr(torch, name), data(8, 4), data())
for name in ("add_", "mul_", "copy_", "div_"):
    real_table(name, lambda x, y, name=name: getattr(x.detach().clone(), name)(y), *_PAIR)
real_table("lerp", partial(torch.lerp, weight=0.5), *_PAIR)
real_table("lerp, tensor", torch.lerp, *_PAIR, data(8, 4))
real_table("addcmul", torch.addcmul, *_PAIR, data(8, 4))
real_table("addcdiv", torch.addcdiv, *_PAIR, data(8, 4))
real_table("clamp", torch.clamp, *_PAIR, data(8, 4))
real_table("cat", lambda *x: torch.cat(x), *_PAIR)
real_table("stack", lambda *x: torch.stack(x), *_PAIR)
for name in ("exp", "log", "sqrt", "rsqrt", "erf", "sin", "abs", "neg", "floor", "sign", "isnan"):
    real_table(name, getattr(torch, name), data(8, 4))
for name in (
    "sum",
    "mean",
    "prod",
    "std",
    "var",
    "norm",
    "max",
    "median",
    "argmax",
    "all",
    "trace",
):
    real_table(name, getattr(torch, name), data(8, 4))
for name in ("cumsum", "cumprod", "logsumexp", "sort", "argsort", "amax", "aminmax", "cummax"):
    real_table(name, partial(getattr(torch, name), dim=-1), data(8, 4))
real_table("topk", partial(torch.topk, k=2), data(8, 4))
real_table("quantile", partial(torch.quantile, q=0.5), data(8))
real_table("tril", torch.tril, data(8, 8))
real_table("vector_norm", torch.linalg.vector_norm, data(8, 4))
for name in ("cholesky", "inv", "det", "svd", "eigh", "qr", "matrix_exp"):
    real_table(f"linalg.{name}", getattr(torch.linalg, name), data(8, 8))
real_table("linalg.solve", torch.linalg.solve, data(8, 8), data(8, 4))
for name in ("fft", "rfft", "fft2", "rfft2"):
    real_table(f"fft.{name}", getattr(torch.fft, name), data(8, 8))
real_table("fft.irfft", torch.fft.irfft, data(8, 8))
real_table(
    "stft", lambda x, w: torch.stft(x, 16, window=w, return_complex=True), data(2, 64), data(16)
)
real_table("complex", torch.complex, *_PAIR)
real_table("bucketize", torch.bucketize, data(8), data(4))

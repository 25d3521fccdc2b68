"""Strides of outputs and gradients of many operators, for inputs of several layouts.

    python -m tests.simulation.layout_cases

prints them, as JSON, of the GPU of this process.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - as everybody names it

Function = Callable[..., Any]

LOSSES = (
    *("mse_loss", "smooth_l1_loss", "huber_loss", "l1_loss", "kl_div", "soft_margin_loss"),
    *("binary_cross_entropy_with_logits", "binary_cross_entropy", "poisson_nll_loss"),
    *("hinge_embedding_loss", "multilabel_soft_margin_loss"),
)

ACTIVATIONS = (
    *(
        "relu",
        "relu6",
        "gelu",
        "silu",
        "leaky_relu",
        "elu",
        "celu",
        "selu",
        "hardswish",
        "hardsigmoid",
    ),
    *("softplus", "mish", "logsigmoid", "tanh", "sigmoid", "softshrink", "hardshrink", "hardtanh"),
    *("tanhshrink", "softsign", "dropout", "alpha_dropout", "normalize"),
)

POINTWISE = (
    *(
        "abs",
        "neg",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "sin",
        "cos",
        "erf",
        "square",
        "reciprocal",
        "sign",
    ),
    *(
        "floor",
        "log1p",
        "expm1",
        "sinc",
        "nan_to_num",
        "lgamma",
        "logit",
        "isfinite",
        "logical_not",
    ),
)

REDUCTIONS = (
    "sum",
    "mean",
    "amax",
    "var",
    "std",
    "logsumexp",
    "norm",
    "max",
    "min",
    "median",
    "argmax",
)


def _of_any_rank(new: Function) -> Iterator[tuple[str, Function]]:
    """Yield functions of one tensor of three dimensions or more, the second of four elements or more."""
    for name in ACTIVATIONS:
        yield name, getattr(F, name)
    for name in POINTWISE:
        yield name, getattr(torch, name)
    for name in REDUCTIONS:
        reduce = getattr(torch, name)
        yield name, lambda x, f=reduce: _first(f(x, dim=1))
        yield f"{name}-kept", lambda x, f=reduce: _first(f(x, dim=1, keepdim=True))
    some = new(2, kind="index")
    yield from {
        "softmax": lambda x: x.softmax(1),
        "log_softmax": lambda x: x.log_softmax(1),
        "softmax-last": lambda x: x.softmax(-1),
        "glu": lambda x: F.glu(x, 1),
        "rrelu": lambda x: F.rrelu(x, training=True),
        "rrelu-eval": F.rrelu,
        "threshold": lambda x: F.threshold(x, 0.0, 0.0),
        "relu-in-place": lambda x: F.relu(x * 1, inplace=True),
        "hardtanh-in-place": lambda x: F.relu6(x * 1, inplace=True),
        "elu-in-place": lambda x: F.elu(x * 1, inplace=True),
        "add": lambda x: x + new(*x.shape),
        "add-before": lambda x: new(*x.shape) + x,
        "mul": lambda x: x * new(*x.shape),
        "broadcast": lambda x: x * new(x.shape[1], *(1 for _ in x.shape[2:])),
        "scalar": lambda x: x * 2 + 1,
        "clamp": lambda x: x.clamp(0, 1),
        "pow": lambda x: x.pow(2),
        "where": lambda x: torch.where(x > 0, x, 0.0),
        "masked_fill": lambda x: x.masked_fill(x > 0, 0),
        "lerp": lambda x: torch.lerp(x, new(*x.shape), 0.3),
        "addcmul": lambda x: torch.addcmul(x, x, new(*x.shape)),
        "atan2": lambda x: torch.atan2(x, new(*x.shape)),
        "maximum": lambda x: torch.maximum(x, new(*x.shape)),
        "cumsum": lambda x: x.cumsum(1),
        "logcumsumexp": lambda x: x.logcumsumexp(1),
        "sort": lambda x: x.sort(1)[0],
        "topk": lambda x: x.topk(2, 1)[0],
        "kthvalue": lambda x: x.kthvalue(1, 1)[0],
        "flip": lambda x: x.flip(1),
        "roll": lambda x: x.roll(1, 1),
        "diff": lambda x: x.diff(dim=1),
        "tril": torch.tril,
        "cat": lambda x: torch.cat([x, x], 1),
        "cat-mixed": lambda x: torch.cat([x, new(*x.shape)], 1),
        "stack": lambda x: torch.stack([x, x], 1),
        "split": lambda x: x.split(2, 1)[0] * 1,
        "pad": lambda x: F.pad(x, (1, 1)),
        "repeat": lambda x: x.repeat(1, 2, *(1 for _ in x.shape[2:])),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
        "index_select": lambda x: x.index_select(1, some),
        "index": lambda x: x[:, some],
        "gather": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.long)),
        "scatter": lambda x: x.scatter(1, torch.zeros_like(x, dtype=torch.long), x),
        "scatter_add": lambda x: x.scatter_add(1, torch.zeros_like(x, dtype=torch.long), x),
        "index_add": lambda x: x.index_add(1, some, x[:, :2]),
        "index_put": lambda x: x.index_put((some,), x[:2]),
        "unfold": lambda x: x.unfold(2, 3, 1) * 1,
        "matmul": lambda x: x @ x.transpose(-1, -2),
        "linear": lambda x: F.linear(x, new(3, x.shape[-1])),
        "einsum": lambda x: torch.einsum("n...c,n...d->n...cd", x, x),
        "cdist": lambda x: torch.cdist(x, x),
        "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
        "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:]),
        "group_norm": lambda x: F.group_norm(x, 2, new(x.shape[1]), new(x.shape[1])),
        "instance_norm": F.instance_norm,
        "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
        "prelu": lambda x: F.prelu(x, new(x.shape[1])),
        "to": lambda x: x.bfloat16(),
        "contiguous": lambda x: x.contiguous(),
        "clone": lambda x: x.clone(),
        "reshape": lambda x: x.reshape(x.shape[0], -1) * 1,
        "flatten": lambda x: x.flatten(2).transpose(1, 2) * 1,
        "zeros_like": lambda x: torch.zeros_like(x) + x,
        "new_zeros": lambda x: x.new_zeros(x.shape) + x,
        "rand_like": lambda x: torch.rand_like(x) * x,
        "complex": lambda x: torch.complex(x, x).abs(),
        "rfft": lambda x: torch.fft.rfft(x).abs(),
    }.items()  # fmt: skip


def _of_images(new: Function) -> Iterator[tuple[str, Function]]:
    """Yield functions of one tensor (4, 8, 8, 10)."""
    labels = new(4, 8, 10, kind="index")
    for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact"):
        yield f"interpolate-{mode}", partial(F.interpolate, scale_factor=2, mode=mode)
        yield f"shrink-{mode}", partial(F.interpolate, size=(3, 3), mode=mode)
    for mode in ("reflect", "replicate", "circular"):
        yield f"pad-{mode}", partial(F.pad, pad=(1, 1, 1, 1), mode=mode)
    yield from {
        "max_pool2d": lambda x: F.max_pool2d(x, 2),
        "max_pool2d-3": lambda x: F.max_pool2d(x, 3, 2, 1),
        "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
        "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 3),
        "adaptive_avg_pool2d-1": lambda x: F.adaptive_avg_pool2d(x, 1),
        "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
        "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x, 2, output_size=(3, 3)),
        "lp_pool2d": lambda x: F.lp_pool2d(x, 2, 2),
        "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
        "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
        "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
        "unfold2d": lambda x: F.unfold(x, 3),
        "dropout2d": lambda x: F.dropout2d(x, 0.5, True),
        "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, True),
        "local_response_norm": lambda x: F.local_response_norm(x, 2),
        "grid_sample": lambda x: F.grid_sample(x, new(4, 5, 5, 2), align_corners=False),
        "cross_entropy": lambda x: F.cross_entropy(x, labels),
        "cross_entropy-none": lambda x: F.cross_entropy(x, labels, reduction="none"),
        "cross_entropy-probabilities": lambda x: F.cross_entropy(x, torch.zeros_like(x)),
        "conv2d": lambda x: F.conv2d(x, new(6, 8, 3, 3)),
        "conv2d-depthwise": lambda x: F.conv2d(x, new(8, 1, 3, 3), groups=8),
        "conv_transpose2d": lambda x: F.conv_transpose2d(x, new(8, 6, 3, 3)),
        "conv2d-mse": lambda x: F.mse_loss(F.conv2d(x, new(8, 8, 3, 3), padding=1), new(*x.shape)),
    }.items()


def _first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def _layouts(new: Function) -> Iterator[tuple[str, Function]]:
    """Yield makers of inputs."""
    yield "channels_last", lambda: new(4, 8, 8, 10).to(memory_format=torch.channels_last)
    yield "contiguous", lambda: new(4, 8, 8, 10)
    yield "permuted", lambda: new(8, 4, 10, 8).permute(1, 0, 3, 2)
    yield "transposed", lambda: new(4, 10, 6).transpose(1, 2)
    yield "sliced", lambda: new(4, 6, 20)[..., ::2]
    yield "channels_last_3d", lambda: new(2, 6, 3, 4, 5).to(memory_format=torch.channels_last_3d)


def answers() -> dict[str, Any]:
    """Return the strides of outputs and gradients, by the names of function and layout.

    The gradient of the output has the output's own layout once, and is contiguous once. Where a function
    refuses a layout, there is the name of the error.
    """

    def new(*shape: int, kind: str = "float") -> torch.Tensor:
        if kind == "index":
            return torch.zeros(shape, dtype=torch.long, device="cuda")
        return torch.empty(shape, device="cuda")

    found: dict[str, Any] = {}
    for layout, make in _layouts(new):
        functions = [*_of_any_rank(new)]
        for loss in LOSSES:
            for reduction in ("mean", "none"):
                like = partial(getattr(F, loss), target=None, reduction=reduction)
                functions.append(
                    (f"{loss}-{reduction}", lambda x, f=like: f(x, target=new(*x.shape)))
                )
        if tuple(make().shape) == (4, 8, 8, 10):
            functions += _of_images(new)
        for name, function in functions:
            found[f"{name} {layout}"] = _strides(function, make)
    return found


def _strides(function: Function, make: Function) -> Any:
    strides = []
    try:
        for contiguous in (False, True):
            x = make().requires_grad_()
            y = function(x)
            strides.append(y.stride())
            if y.requires_grad:
                grad = torch.empty_like(y)
                if contiguous:
                    grad = torch.empty(y.shape, dtype=y.dtype, device="cuda")
                strides.append(torch.autograd.grad(y, x, grad)[0].stride())
    except (RuntimeError, ValueError) as error:
        return type(error).__name__
    return strides


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    json.dump(answers(), sys.stdout)

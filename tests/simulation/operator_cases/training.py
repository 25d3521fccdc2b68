# ruff: noqa: B008 - cases bind their tensors as defaults, and are tables to read across
"""What only training steps call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody names it
from torch import Tensor

from operator_cases.tensors import (
    BF16,
    DOUBLE,
    FLOAT,
    FLOATS,
    HALF,
    LAYOUTS,
    Case,
    backward,
    group,
    ints,
    new,
)


@group
def losses() -> Iterator[Case]:
    pairs: list[Callable[..., Any]] = [
        F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.kl_div, F.poisson_nll_loss,
        F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.soft_margin_loss,
        partial(F.kl_div, log_target=True), F.hinge_embedding_loss,
        lambda x, y, reduction: F.gaussian_nll_loss(x, y, y.abs(), reduction=reduction),
        lambda x, y, reduction: F.binary_cross_entropy(x, y, y, reduction=reduction),
        lambda x, y, reduction: F.binary_cross_entropy_with_logits(
            x, y, pos_weight=y[..., :1], reduction=reduction),
        lambda x, y, reduction: F.binary_cross_entropy_with_logits(
            x, y, weight=y, reduction=reduction),
    ]  # fmt: skip
    for dtype in FLOATS:
        for sizes in ((5,), (64, 1000), (4, 3, 224, 224), (32, 64, 129, 130)):
            for layout in LAYOUTS:
                for function in pairs:
                    for reduction in ("mean", "sum", "none"):
                        if layout != "contiguous" and reduction == "sum":
                            continue
                        x = new(*sizes, dtype=dtype, layout=layout)
                        y = new(*sizes, dtype=dtype).detach()

                        def call(
                            x: Tensor, f: Any = function, y: Tensor = y, r: str = reduction
                        ) -> Any:
                            return f(x, y, reduction=r)

                        yield partial(backward, call, x)
        for rows, classes in ((4, 10), (512, 1000), (4096, 50257), (1000, 2)):
            for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}, {"weight": True}):
                chosen = dict(options)
                if "weight" in chosen:
                    chosen["weight"] = new(classes, dtype=dtype)
                yield partial(
                    backward,
                    partial(F.cross_entropy, target=ints(rows), **chosen),
                    new(rows, classes, dtype=dtype),
                )
            soft = new(rows, classes, dtype=dtype)
            yield partial(
                backward, partial(F.cross_entropy, target=soft), new(rows, classes, dtype=dtype)
            )
        for layout in ("contiguous", "channels_last"):
            for options in (
                {},
                {"label_smoothing": 0.1},
                {"reduction": "none"},
                {"reduction": "sum"},
            ):
                for sizes in ((2, 5, 64, 64), (4, 21, 513, 513)):
                    yield partial(
                        backward,
                        partial(F.cross_entropy, target=ints(sizes[0], *sizes[2:]), **options),
                        new(*sizes, dtype=dtype, layout=layout),
                    )
        for layout in LAYOUTS:
            image = new(2, 5, 33, 40, dtype=dtype, layout=layout)
            for labels in (ints(2, 33, 40), ints(2, 40, 33).transpose(1, 2)):
                for reduction in ("mean", "sum", "none"):
                    yield partial(
                        backward, partial(F.nll_loss, target=labels, reduction=reduction), image
                    )
            flat = new(64, 10, dtype=dtype, layout=layout)
            for reduction in ("mean", "sum", "none"):
                for labels in (ints(64), ints(64, 2)[:, 0]):
                    yield partial(
                        backward, partial(F.nll_loss, target=labels, reduction=reduction), flat
                    )
                    yield partial(
                        backward,
                        partial(F.multi_margin_loss, target=labels, reduction=reduction),
                        flat,
                    )
                yield partial(
                    backward,
                    partial(F.multilabel_margin_loss, target=ints(64, 10), reduction=reduction),
                    flat,
                )
        for rows, width in ((16, 64), (512, 1024)):
            x, y, z = (new(rows, width, dtype=dtype) for _ in range(3))
            sign = new(rows, dtype=dtype)
            yield partial(backward, lambda a, b, s=sign: F.cosine_embedding_loss(a, b, s), x, y)
            yield partial(backward, F.cosine_similarity, x, y)
            yield partial(backward, F.triplet_margin_loss, x, y, z)
            yield partial(backward, F.pairwise_distance, x, y)
            yield partial(backward, lambda a, t=ints(rows): F.multi_margin_loss(a, t), x)
            yield partial(
                backward, lambda a, t=ints(rows, width): F.multilabel_margin_loss(a, t), x
            )
            yield partial(backward, lambda a, s=y: F.multilabel_soft_margin_loss(a, s), x)
            yield partial(
                backward, lambda a, b, s=sign: F.margin_ranking_loss(a[:, 0], b[:, 0], s), x, y
            )
    for steps, batch, classes, length in ((50, 4, 20, 10), (200, 16, 100, 30), (40, 500, 80, 12)):
        sizes = torch.full((batch,), length, dtype=torch.long)
        spans = torch.full((batch,), steps, dtype=torch.long)
        targets = torch.ones(batch, length, dtype=torch.long, device="cuda")
        for place in ("cpu", "cuda"):
            for zero_infinity in (False, True):
                yield partial(
                    backward,
                    lambda x, t=targets, a=spans.to(place), b=sizes.to(place), z=zero_infinity: (
                        F.ctc_loss(x.log_softmax(2), t, a, b, zero_infinity=z)
                    ),
                    new(steps, batch, classes),
                )
    for steps in (50, 300):
        yield partial(
            backward,
            lambda x, t=targets[0], a=torch.tensor(steps): F.ctc_loss(
                x.log_softmax(1), t, a, torch.tensor(len(t))
            ),
            new(steps, 80),
        )


@group
def normalization() -> Iterator[Case]:
    for dtype in FLOATS:
        for weight_dtype in {dtype, FLOAT}:
            for rows, width in (((4,), 16), ((8, 197), 768), ((2, 56, 56), 96), ((64, 512), 1024),
                                ((3, 5000), 1023), ((128,), 5), ((40000,), 64)):  # fmt: skip
                for layout in ("contiguous", "transposed", "sliced", "expanded"):
                    x = new(*rows, width, dtype=dtype, layout=layout)
                    w = new(width, dtype=weight_dtype)
                    for grad in ("contiguous", "transposed"):
                        yield partial(
                            backward,
                            lambda x, w, b: F.layer_norm(x, w.shape, w, b),
                            x, w, w.clone(), grad_layout=grad,
                        )  # fmt: skip
                        yield partial(backward, lambda x, w: F.rms_norm(x, w.shape, w), x, w,
                                      grad_layout=grad)  # fmt: skip
                    yield partial(backward, lambda x, w=width: F.layer_norm(x, (w,)), x)
                    yield partial(backward, lambda x, w=width: F.rms_norm(x, (w,)), x)
                    yield partial(backward, lambda x, w: F.layer_norm(x, w.shape, w), x, w)
            for rows, width in (
                (65536, 32),
                (65537, 96),
                (200704, 96),
                (401408, 192),
                (100352, 1024),
                (131072, 768),
                (70000, 33),
                (802816, 64),
                (65600, 2112),
                (65600, 2080),
            ):
                x, w = new(rows, width, dtype=dtype), new(width, dtype=weight_dtype)
                yield partial(
                    backward, lambda x, w, b: F.layer_norm(x, w.shape, w, b), x, w, w.clone()
                )
                yield partial(backward, lambda x, w: F.layer_norm(x, w.shape, w), x, w)
                yield partial(backward, lambda x, w: F.rms_norm(x, w.shape, w), x, w)
            for sizes, groups in (((2, 32, 8, 8), 32), ((8, 64, 32, 32), 8), ((1, 320, 64, 64), 32),
                                  ((3, 12, 7, 7), 3), ((4, 64, 1000), 4), ((2, 8, 4, 16, 16), 2),
                                  ((4, 64, 1, 1), 1), ((128, 512), 8)):  # fmt: skip
                for layout in ("contiguous", "channels_last", "transposed"):
                    x = new(*sizes, dtype=dtype, layout=layout)
                    w = new(sizes[1], dtype=weight_dtype)
                    for grad in ("contiguous", "channels_last", "transposed"):
                        yield partial(
                            backward,
                            lambda x, w, b, g=groups: F.group_norm(x, g, w, b),
                            x, w, w.clone(), grad_layout=grad,
                        )  # fmt: skip
                    yield partial(backward, lambda x, g=groups: F.group_norm(x, g), x)


@group
def embedding() -> Iterator[Case]:
    for dtype in FLOATS:
        for count in (5, 512, 768, 769, 3072, 3073, 4096, 5000, 16384, 100001):
            for words, width in ((50257, 768), (100, 512), (2, 1024), (30522, 33), (100, 2080)):
                for options in ({}, {"padding_idx": 0}, {"scale_grad_by_freq": True}):
                    if options.get("scale_grad_by_freq") and count > 20000:
                        continue  # the size of two scans is read off, and rounded
                    for kind in (torch.int64, torch.int32):
                        yield partial(
                            backward,
                            lambda w, i=ints(count).to(kind), o=options: F.embedding(i, w, **o),
                            new(words, width, dtype=dtype),
                        )
            yield partial(
                backward,
                lambda w, i=ints(count): F.embedding(i, w),
                new(1000, 64, dtype=dtype),
                grad_layout="transposed",
            )
            for mode in ("sum", "mean", "max"):
                for words, width in ((1000, 64), (50000, 128), (50, 64)):
                    yield partial(
                        backward,
                        lambda w, i=ints(count), m=mode: F.embedding_bag(
                            i, w, torch.arange(0, len(i), 5, device="cuda"), mode=m
                        ),
                        new(words, width, dtype=dtype),
                    )
                    if count % 4 == 0:
                        yield partial(
                            backward,
                            lambda w, i=ints(count // 4, 4), m=mode: F.embedding_bag(i, w, mode=m),
                            new(words, width, dtype=dtype),
                        )
    w = new(1000, 64)
    yield partial(F.embedding, ints(100), w.clone(), max_norm=1.0)


@group
def random_numbers() -> Iterator[Case]:
    for dtype in FLOATS:
        for layout in (*LAYOUTS, "swapped"):
            for sizes in ((5,), (64, 1000), (8, 16, 33, 32)):
                x = new(*sizes, dtype=dtype, layout=layout)
                yield partial(backward, partial(F.dropout, p=0.1), x)
                yield partial(backward, partial(F.dropout, p=0.0), x)
                yield partial(backward, partial(F.dropout, p=1.0), x)
                yield partial(backward, partial(F.alpha_dropout, p=0.1, training=True), x)
                yield partial(backward, partial(F.rrelu, training=True), x)
                yield partial(torch.bernoulli, x)
                yield partial(torch.bernoulli, x, p=0.3)
                yield partial(torch.poisson, x)
                yield partial(torch.binomial, x, x)
                yield partial(torch.normal, x, 1.0)
                yield partial(torch.normal, x, x)
                yield partial(torch.normal, 0.0, x)
                yield lambda x=x: x.clone().exponential_()
                yield lambda x=x: x.clone().bernoulli_(0.5)
                yield lambda x=x: x.clone().bernoulli_(x.float())
                yield lambda x=x: x.clone().uniform_()
                yield lambda x=x: x.clone().normal_()
                yield partial(torch.rand_like, x)
                yield partial(torch.randn_like, x)
                yield partial(torch.randint_like, x, 5)
                if len(sizes) > 2:
                    yield partial(backward, F.dropout2d, x)
                    yield partial(backward, partial(F.feature_alpha_dropout, training=True), x)
                yield partial(backward, partial(F.gumbel_softmax, hard=True), x)
                yield partial(torch._standard_gamma, x)
    yield partial(torch.randint, 0, 5, (10, 10), device="cuda")
    yield partial(torch.rand, 10, device="cuda")
    yield partial(torch.randn, 10, device="cuda", dtype=HALF)


@group
def foreach() -> Iterator[Case]:
    for dtype in FLOATS:
        shapes = [(1000, 1000), (10,), (300, 300), (70000,), (1,)] + [(5, 7)] * 300
        tensors = [new(*s, dtype=dtype) for s in shapes]
        one = [new(3, 3, dtype=dtype)]
        mixed = [*one, new(4, 4, dtype=BF16), new(70000, 2, dtype=DOUBLE)]
        strided = [new(64, 64, dtype=dtype, layout="transposed"), new(9, 10, dtype=dtype)]
        scalar = torch.zeros((), device="cuda")
        for group_ in (tensors, one, mixed, strided):
            for order in (2, 1, float("inf")):
                yield partial(torch._foreach_norm, group_, order)
            yield partial(torch._foreach_add, group_, 1)
            yield partial(torch._foreach_add, group_, group_)
            yield partial(torch._foreach_mul, group_, scalar)
            yield partial(torch._foreach_mul_, group_, scalar)
            yield partial(torch._foreach_mul, group_, [2.0] * len(group_))
            yield partial(torch._foreach_sqrt, group_)
            yield partial(torch._foreach_div, group_, group_)
            yield partial(torch._foreach_div_, group_, scalar)
            yield partial(torch._foreach_lerp, group_, group_, 0.5)
            yield partial(torch._foreach_addcdiv, group_, group_, group_, 0.5)
            yield partial(torch._foreach_addcmul_, group_, group_, group_, 0.5)
            yield partial(torch._foreach_max, group_)
            yield partial(torch._foreach_maximum, group_, group_)
            yield partial(torch._foreach_neg, group_)
            yield partial(torch._foreach_zero_, group_)
            yield partial(torch._foreach_copy_, group_, [t.float() for t in group_])
            yield partial(torch._foreach_pow, group_, 2)
            yield partial(torch._foreach_reciprocal, group_)
            yield partial(torch._foreach_sign, group_)
            yield partial(torch._amp_foreach_non_finite_check_and_unscale_, group_, scalar, scalar)
            yield partial(
                torch._amp_update_scale_,
                scalar,
                torch.zeros((), dtype=torch.int32, device="cuda"),
                scalar,
                2.0,
                0.5,
                2000,
            )
        for group_ in (tensors, one, strided):
            state = [torch.empty_like(t) for t in group_]
            count = [torch.zeros((), device="cuda") for _ in group_]
            for fused in (torch._fused_adamw_, torch._fused_adam_):
                for amsgrad in (True, False):
                    yield partial(
                        fused,
                        group_,
                        state,
                        state,
                        state,
                        state if amsgrad else [],
                        count,
                        lr=1e-3,
                        beta1=0.9,
                        beta2=0.99,
                        weight_decay=0.0,
                        eps=1e-8,
                        amsgrad=amsgrad,
                        maximize=False,
                    )
                yield partial(
                    fused,
                    group_,
                    state,
                    state,
                    state,
                    [],
                    count,
                    lr=scalar,
                    beta1=0.9,
                    beta2=0.99,
                    weight_decay=0.0,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                    grad_scale=scalar,
                    found_inf=scalar,
                )
            for momentum in (0.0, 0.9):
                yield partial(
                    torch._fused_sgd_,
                    group_,
                    state,
                    state if momentum else [],
                    lr=0.1,
                    momentum=momentum,
                    weight_decay=0.0,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                    is_first_step=False,
                )
            yield partial(
                torch._fused_adagrad_,
                group_,
                state,
                state,
                count,
                lr=0.1,
                lr_decay=0.0,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )

"""Convolutions, recurrent layers, norms, activations, pooling."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody names it
from tests.simulation.dtype_cases.case import constant, data, few, index, mask, table

for dim in (1, 2, 3):
    sizes = (8,) * dim
    kernel = (3,) * dim
    add = table if dim == 2 else few
    convolution = getattr(F, f"conv{dim}d")
    transposed = getattr(F, f"conv_transpose{dim}d")
    x, weight = data(2, 4, *sizes), data(6, 4, *kernel)
    add(f"conv{dim}d", convolution, x, weight)
    add(f"conv{dim}d, bias", convolution, x, weight, data(6))
    few(f"conv_transpose{dim}d, bias", transposed, x, data(4, 6, *kernel), data(6))
few("conv_transpose2d", F.conv_transpose2d, data(2, 4, 8, 8), data(4, 6, 3, 3))
table("conv2d, depthwise", partial(F.conv2d, groups=4), data(2, 4, 8, 8), data(4, 1, 3, 3))
few("conv2d, groups", partial(F.conv2d, groups=2), data(2, 4, 8, 8), data(6, 2, 3, 3), data(6))
few("conv2d, dilated", partial(F.conv2d, dilation=2), data(2, 4, 8, 8), data(6, 4, 3, 3))
few("conv_tbc", torch.conv_tbc, data(8, 2, 4), data(3, 4, 6), data(6))


def _recurrent(kind, **options):
    def call(x, weight, *hidden):
        layer = getattr(torch.nn, kind)(4, 6, batch_first=True, device="cuda", **options)
        layer.to(weight.dtype)
        state = (hidden or None) if kind == "LSTM" else (hidden[0] if hidden else None)
        return layer(x, state)[0]

    return call


def _cell(kind):
    def call(x, weight, *hidden):
        layer = getattr(torch.nn, kind)(4, 6, device="cuda").to(weight.dtype)
        state = (hidden or None) if kind == "LSTMCell" else (hidden[0] if hidden else None)
        return layer(x, state)

    return call


_STATE = data(1, 2, 6)
few("LSTM", _recurrent("LSTM"), data(2, 8, 4), data(1))
table("LSTM, hidden", _recurrent("LSTM"), data(2, 8, 4), data(1), _STATE, _STATE, regions=True)
few("GRU", _recurrent("GRU"), data(2, 8, 4), data(1))
table("GRU, hidden", _recurrent("GRU"), data(2, 8, 4), data(1), _STATE)
few("RNN", _recurrent("RNN"), data(2, 8, 4), data(1))
table("RNN, hidden", _recurrent("RNN", bias=False), data(2, 8, 4), data(1), _STATE)
few("LSTMCell", _cell("LSTMCell"), data(2, 4), data(1))
table("LSTMCell, hidden", _cell("LSTMCell"), data(2, 4), data(1), data(2, 6), data(2, 6))
few("GRUCell", _cell("GRUCell"), data(2, 4), data(1))
table("GRUCell, hidden", _cell("GRUCell"), data(2, 4), data(1), data(2, 6))
table("RNNCell", _cell("RNNCell"), data(2, 4), data(1))

table(
    "layer_norm",
    lambda x, *p: F.layer_norm(x, (8,), *p),
    *(data(2, 4, 8), data(8), data(8)),
    regions=True,
)
few("layer_norm, weight", lambda x, w: F.layer_norm(x, (8,), w), data(2, 4, 8), data(8))
table("layer_norm, bare", lambda x: F.layer_norm(x, (8,)), data(2, 4, 8))
table("rms_norm", lambda x, w: F.rms_norm(x, (8,), w), data(2, 4, 8), data(8))
table("rms_norm, bare", lambda x: F.rms_norm(x, (8,)), data(2, 4, 8))
table("group_norm", lambda x, *p: F.group_norm(x, 2, *p), data(2, 4, 8, 8), data(4), data(4))
table("group_norm, bare", lambda x: F.group_norm(x, 2), data(2, 4, 8, 8))


def _batch_norm(training):
    def call(x, weight, bias, mean, variance):
        return F.batch_norm(x, mean, variance, weight, bias, training)

    return call


_CHANNELS = (data(4), data(4), constant(4), constant(4))
table("batch_norm, 4-D", _batch_norm(True), data(2, 4, 8, 8), *_CHANNELS)
few("batch_norm, 4-D, eval", _batch_norm(False), data(2, 4, 8, 8), *_CHANNELS)
table("batch_norm, 2-D", _batch_norm(True), data(8, 4), *_CHANNELS)
few(
    "batch_norm, no statistics",
    lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    *(data(2, 4, 8, 8), data(4), data(4)),
)
few(
    "batch_norm, no weights",
    lambda x, m, v: F.batch_norm(x, m, v, training=True),
    *(data(2, 4, 8, 8), constant(4), constant(4)),
)
few(
    "batch_norm, no weights, eval",
    lambda x, m, v: F.batch_norm(x, m, v),
    *(data(2, 4, 8, 8), constant(4), constant(4)),
)
few(
    "instance_norm",
    lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
    data(2, 4, 8, 8),
    data(4),
    data(4),
)

for name in (
    *("relu", "gelu", "silu", "sigmoid", "tanh", "leaky_relu", "elu", "selu", "celu", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "mish", "logsigmoid", "softsign", "tanhshrink"),
    *("relu6", "softshrink", "hardshrink", "glu", "normalize", "dropout", "alpha_dropout"),
):
    table(name, getattr(F, name), data(2, 4, 8, 8))
for name in ("softmax", "log_softmax", "softmin", "gumbel_softmax"):
    table(name, partial(getattr(F, name), dim=-1), data(2, 4, 8))
table("prelu", F.prelu, data(2, 4, 8, 8), data(4))
table("local_response_norm", partial(F.local_response_norm, size=3), data(2, 4, 8, 8))

for name in ("max_pool2d", "avg_pool2d"):
    table(name, partial(getattr(F, name), kernel_size=2), data(2, 4, 8, 8))
for name in ("max_pool1d", "avg_pool1d"):
    table(name, partial(getattr(F, name), kernel_size=2), data(2, 4, 8))
for name in ("max_pool3d", "avg_pool3d"):
    table(name, partial(getattr(F, name), kernel_size=2), data(2, 4, 8, 8, 8))
for name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
    table(name, partial(getattr(F, name), output_size=3), data(2, 4, 8, 8))
table("adaptive_avg_pool2d, 1", partial(F.adaptive_avg_pool2d, output_size=1), data(2, 4, 8, 8))
for mode in ("nearest", "bilinear", "bicubic", "area", "nearest-exact"):
    table(
        f"interpolate, {mode}", partial(F.interpolate, scale_factor=2, mode=mode), data(2, 4, 8, 8)
    )
for mode in ("constant", "reflect", "replicate", "circular"):
    table(f"pad, {mode}", partial(F.pad, pad=(1, 1, 1, 1), mode=mode), data(2, 4, 8, 8))
table(
    "grid_sample", partial(F.grid_sample, align_corners=False), data(2, 4, 8, 8), data(2, 6, 6, 2)
)
table("affine_grid", lambda x: F.affine_grid(x, (2, 4, 8, 8), False), data(2, 2, 3))
table("unfold", partial(F.unfold, kernel_size=2), data(2, 4, 8, 8))
table("fold", partial(F.fold, output_size=4, kernel_size=2, stride=2), data(2, 16, 4))
table("pixel_shuffle", partial(F.pixel_shuffle, upscale_factor=2), data(2, 4, 8, 8))

table("embedding", F.embedding, index(2, 8), data(16, 4))
few("embedding, scaled", partial(F.embedding, scale_grad_by_freq=True), index(2, 8), data(16, 4))
for mode in ("sum", "mean", "max"):
    table(f"embedding_bag, {mode}", partial(F.embedding_bag, mode=mode), index(2, 8), data(16, 4))
table("embedding_bag, offsets", F.embedding_bag, index(8), data(16, 4), index(2))
table(
    "embedding_bag, weights",
    lambda i, w, p: F.embedding_bag(i, w, per_sample_weights=p, mode="sum"),
    index(2, 8),
    data(16, 4),
    data(2, 8),
)
table("one_hot", partial(F.one_hot, num_classes=4), index(8))
table("index_select", lambda x, i: x.index_select(0, i), data(8, 4), index(2))
table("gather", lambda x, i: x.gather(1, i), data(8, 4), index(8, 2))
table("take_along_dim", lambda x, i: x.take_along_dim(i, 1), data(8, 4), index(8, 2))
table("take", torch.take, data(8, 4), index(3))
table("scatter", lambda x, i, s: x.scatter(1, i, s), data(8, 4), index(8, 2), data(8, 2))
table("scatter, value", lambda x, i: x.scatter(1, i, 1), data(8, 4), index(8, 2))
table("scatter_add", lambda x, i, s: x.scatter_add(1, i, s), data(8, 4), index(8, 2), data(8, 2))
table(
    "scatter_reduce",
    lambda x, i, s: x.scatter_reduce(1, i, s, "amax"),
    data(8, 4),
    index(8, 2),
    data(8, 2),
)
table("index_add", lambda x, i, s: x.index_add(0, i, s), data(8, 4), index(2), data(2, 4))
table("index_copy", lambda x, i, s: x.index_copy(0, i, s), data(8, 4), index(2), data(2, 4))
table("index_fill", lambda x, i: x.index_fill(0, i, 1), data(8, 4), index(2))
table("index", lambda x, i: x[i], data(8, 4), index(2))
table("index, two", lambda x, i, j: x[i, j], data(8, 4), index(2), index(2))
table("index_put", lambda x, i, v: x.index_put((i,), v), data(8, 4), index(2), data(2, 4))
table(
    "index_put, accumulate",
    lambda x, i, v: x.index_put((i,), v, True),
    data(8, 4),
    index(2),
    data(2, 4),
)
table("masked_fill", lambda x, m: x.masked_fill(m, 0), data(8, 4), mask(8, 4))
table("masked_fill, tensor", lambda x, m, v: x.masked_fill(m, v), data(8, 4), mask(8, 4), data())
table("where", torch.where, mask(8, 4), data(8, 4), data(8, 4))
table("masked_scatter", lambda x, m, s: x.masked_scatter(m, s), data(8, 4), mask(8, 4), data(8, 4))

"""Matrix products and attention."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody names it
from tests.simulation.dtype_cases.case import constant, data, few, table
from torch.nn.attention import SDPBackend, sdpa_kernel

aten = torch.ops.aten

table("mm", torch.mm, data(4, 8), data(8, 16))
table("addmm", torch.addmm, data(4, 16), data(4, 8), data(8, 16))
few("addmm, bias", torch.addmm, data(16), data(4, 8), data(8, 16))
few("addmm, beta 0.5", partial(torch.addmm, beta=0.5), data(16), data(4, 8), data(8, 16))
table("_addmm_activation", aten._addmm_activation, data(16), data(4, 8), data(8, 16))
table("bmm", torch.bmm, data(2, 4, 8), data(2, 8, 16))
table("baddbmm", torch.baddbmm, data(2, 4, 16), data(2, 4, 8), data(2, 8, 16))
few("addbmm", torch.addbmm, data(4, 16), data(2, 4, 8), data(2, 8, 16))
table("mv", torch.mv, data(4, 8), data(8))
table("addmv", torch.addmv, data(4), data(4, 8), data(8))
table("dot", torch.dot, data(8), data(8))
few("vdot", torch.vdot, data(8), data(8))
table("outer", torch.outer, data(8), data(4))
few("addr", torch.addr, data(8, 4), data(8), data(4))
table("inner", torch.inner, data(4, 8), data(2, 8))
few("matmul, 1-D", torch.matmul, data(8), data(8))
table("matmul, 2-D 1-D", torch.matmul, data(4, 8), data(8))
table("matmul, 3-D 2-D", torch.matmul, data(2, 4, 8), data(8, 16))
table("matmul, 4-D", torch.matmul, data(2, 3, 4, 8), data(2, 3, 8, 4))
few("linear, 1-D", F.linear, data(8), data(16, 8))
table("linear, 2-D", F.linear, data(4, 8), data(16, 8))
table("linear, 2-D, bias", F.linear, data(4, 8), data(16, 8), data(16), regions=True)
few("linear, 1-D, bias", F.linear, data(8), data(16, 8), data(16))
few("linear, 3-D", F.linear, data(2, 4, 8), data(16, 8))
table("linear, 3-D, bias", F.linear, data(2, 4, 8), data(16, 8), data(16))
few("bilinear", F.bilinear, data(4, 8), data(4, 3), data(5, 8, 3), data(5))
table("einsum, bij,bjk", partial(torch.einsum, "bij,bjk->bik"), data(2, 4, 8), data(2, 8, 16))
table("einsum, bid,hd", partial(torch.einsum, "bid,hd->bih"), data(2, 4, 8), data(16, 8))
table("tensordot", partial(torch.tensordot, dims=1), data(2, 4, 8), data(8, 16))
table("vecdot", torch.linalg.vecdot, data(4, 8), data(4, 8))
few("multi_dot", lambda *x: torch.linalg.multi_dot(x), data(4, 8), data(8, 16), data(16, 4))
table("cross", torch.linalg.cross, data(4, 3), data(4, 3))
table("cdist", torch.cdist, data(2, 4, 8), data(2, 5, 8))

_HEADS = (data(2, 4, 16, 32), data(2, 4, 16, 32), data(2, 4, 16, 32))
_MASK = constant(2, 4, 16, 16)


def _with(backend: SDPBackend):
    def attention(*tensors, **options):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*tensors, **options)

    return attention


table("attention", F.scaled_dot_product_attention, *_HEADS)
table("attention, mask", F.scaled_dot_product_attention, *_HEADS, _MASK, regions=True)
for backend in (
    SDPBackend.MATH,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
):
    name = f"attention, {backend.name}"
    few(name, _with(backend), *_HEADS)
    if backend in (SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION):
        few(f"{name}, mask", _with(backend), *_HEADS, _MASK)


def _multihead(training):
    def call(query, weight, key, mask=None):
        layer = torch.nn.MultiheadAttention(16, 2, batch_first=True, device="cuda")
        layer.to(weight.dtype).train(training)
        return layer(query, key, key, attn_mask=mask, need_weights=False)[0]

    return call


_STATES = (data(2, 8, 16), data(1), data(2, 8, 16))
table("multihead attention", _multihead(True), *_STATES)
few("multihead attention, mask", _multihead(True), *_STATES, constant(8, 8))
few("multihead attention, eval", _multihead(False), *_STATES)

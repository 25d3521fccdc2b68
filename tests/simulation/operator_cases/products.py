"""Matrix products and linear algebra."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody names it

from operator_cases.tensors import (
    DOUBLE,
    FLOAT,
    FLOATS,
    Case,
    backward,
    group,
    new,
)


@group
def matmul() -> Iterator[Case]:
    for dtype in (*FLOATS, DOUBLE, torch.complex64):
        for rows, inner, columns in (
            (4, 4, 4),
            (512, 768, 3072),
            (1, 64, 1),
            (7, 5, 3),
            (4096, 64, 64),
        ):
            for a_layout in ("contiguous", "transposed", "sliced", "expanded"):
                for b_layout in ("contiguous", "transposed", "sliced", "expanded"):
                    a = new(rows, inner, dtype=dtype, layout=a_layout)
                    b = new(inner, columns, dtype=dtype, layout=b_layout)
                    yield partial(torch.mm, a, b)
                    for bias in (
                        new(columns, dtype=dtype),
                        new(rows, columns, dtype=dtype),
                        new(rows, 1, dtype=dtype),
                        new(1, dtype=dtype),
                        new(rows, columns, dtype=dtype, layout="transposed"),
                    ):
                        yield partial(torch.addmm, bias, a, b)
                    yield partial(torch.addmm, new(columns, dtype=dtype), a, b, beta=0.5)
                    yield partial(torch.ops.aten.addmm_, new(rows, columns, dtype=dtype), a, b)
                    yield partial(
                        torch.ops.aten.addmm_,
                        new(rows, columns, dtype=dtype, layout="sliced"),
                        a,
                        b,
                    )
                    if dtype in FLOATS:
                        yield partial(
                            torch.ops.aten._addmm_activation, new(columns, dtype=dtype), a, b
                        )
                        yield partial(
                            torch.ops.aten._addmm_activation,
                            new(columns, dtype=dtype),
                            a,
                            b,
                            use_gelu=True,
                        )
                    yield partial(torch.mv, a, b[:, 0])
                    yield partial(torch.addmv, new(rows, dtype=dtype), a, b[:, 0])
                    yield partial(torch.addmv, new(1, dtype=dtype), a, b[:, 0])
                    yield partial(torch.dot, a[0], b[:, 0])
                    yield partial(torch.vdot, a[0], b[:, 0])
                    yield partial(torch.outer, a[0], b[0])
                    for batch in (1, 3):
                        c = new(batch, rows, inner, dtype=dtype, layout=a_layout)
                        d = new(batch, inner, columns, dtype=dtype, layout=b_layout)
                        yield partial(torch.bmm, c, d)
                        yield partial(torch.baddbmm, new(batch, rows, columns, dtype=dtype), c, d)
                        yield partial(torch.baddbmm, new(columns, dtype=dtype), c, d)
                        yield partial(torch.addbmm, new(rows, columns, dtype=dtype), c, d)
                        yield partial(
                            torch.ops.aten.baddbmm_,
                            new(batch, rows, columns, dtype=dtype, layout="transposed"),
                            c,
                            d,
                        )
                    e = new(rows, 3, inner, dtype=dtype).transpose(0, 1)
                    yield partial(torch.bmm, e, d if batch == 3 else e.transpose(1, 2))
                    yield partial(torch.bmm, e, e.transpose(1, 2))
            x = new(3, rows, inner, dtype=dtype)
            if not dtype.is_complex:
                yield partial(
                    backward,
                    F.linear,
                    x,
                    new(columns, inner, dtype=dtype),
                    new(columns, dtype=dtype),
                )
                yield partial(
                    backward,
                    F.linear,
                    new(rows, inner, dtype=dtype),
                    new(columns, inner, dtype=dtype),
                    new(columns, dtype=dtype),
                )
                yield partial(
                    backward, F.linear, x.transpose(0, 1), new(columns, inner, dtype=dtype)
                )
                yield partial(
                    backward,
                    F.bilinear,
                    x,
                    x,
                    new(4, inner, inner, dtype=dtype)
                    if inner < 100
                    else new(1, inner, inner, dtype=dtype),
                )
                yield partial(backward, partial(torch.einsum, "bij,bkj->bik"), x, x)
                yield partial(
                    backward,
                    partial(torch.einsum, "bij,kj->bik"),
                    x,
                    new(columns, inner, dtype=dtype),
                )


@group
def grouped_products() -> Iterator[Case]:
    # The fake GPU's offsets are zeros, so that only groups of one size have products there.
    for dtype in FLOATS:
        for rows, inner, columns in ((8, 16, 32), (256, 768, 1024), (64, 24, 40)):
            left, right = new(4, rows, inner, dtype=dtype), new(4, inner, columns, dtype=dtype)
            yield partial(torch._grouped_mm, left, right)
            yield partial(torch._grouped_mm, left, new(4, columns, inner, dtype=dtype).mT)


@group
def float8_products() -> Iterator[Case]:
    scale = new(1)
    for rows in (16, 48, 256, 4096):
        for inner, columns in ((16, 32), (48, 16), (768, 1024)):
            left = new(rows, inner, dtype=torch.float8_e4m3fn)
            right = new(columns, inner, dtype=torch.float8_e4m3fn).t()
            for dtype in (torch.bfloat16, FLOAT):
                yield partial(torch._scaled_mm, left, right, scale, scale, out_dtype=dtype)


@group
def linalg() -> Iterator[Case]:
    for dtype in (FLOAT, DOUBLE):
        for batch in ((), (3,), (2, 5)):
            for n in (2, 3, 16, 40, 130, 600):
                a = new(*batch, n, n, dtype=dtype)
                b = new(*batch, n, 4, dtype=dtype)
                for layout in ("contiguous", "transposed"):
                    a = new(*batch, n, n, dtype=dtype, layout=layout)
                    yield partial(backward, torch.linalg.cholesky, a)
                    yield partial(backward, torch.linalg.inv, a)
                    yield partial(backward, torch.linalg.solve, a, b)
                    yield partial(backward, torch.linalg.det, a)
                    yield partial(backward, torch.linalg.slogdet, a)
                    yield partial(backward, torch.linalg.qr, a)
                    yield partial(backward, torch.linalg.svd, a)
                    yield partial(backward, torch.linalg.svdvals, a)
                    yield partial(backward, torch.linalg.eigh, a)
                    yield partial(backward, torch.linalg.eigvalsh, a)
                    yield partial(backward, torch.linalg.lu_factor, a)
                    yield partial(
                        backward, partial(torch.linalg.solve_triangular, upper=True), a, b
                    )
                    yield partial(backward, torch.linalg.matrix_exp, a)
                    yield partial(backward, torch.linalg.pinv, a)
                    yield partial(backward, lambda a, b: torch.linalg.lstsq(a, b).solution, a, b)
                    yield partial(backward, torch.cholesky_inverse, a)
                    yield partial(backward, torch.cholesky_solve, b, a)
                    yield partial(backward, torch.triu, a)
                    yield partial(backward, torch.tril, a)
                    yield (
                        partial(
                            backward,
                            torch.diagonal,
                            a,
                        )
                        if n > 2
                        else partial(torch.diag_embed, a)
                    )
                    yield (
                        partial(backward, torch.trace, a)
                        if not batch
                        else partial(torch.linalg.matrix_norm, a)
                    )
                    yield partial(backward, lambda a: torch.linalg.cross(a[..., :3], a[..., :3]), a)
                    yield partial(torch.linalg.matrix_power, a, 3)

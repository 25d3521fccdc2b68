# ruff: noqa: E501 - cases bind their tensors as defaults, and are tables to read across
"""Indexing and sorting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from operator_cases.tensors import (
    DOUBLE,
    FLOAT,
    FLOATS,
    Case,
    backward,
    group,
    ints,
    new,
)


@group
def indexing() -> Iterator[Case]:
    for dtype in (*FLOATS, torch.int64):
        for layout in ("contiguous", "transposed"):
            for rows, width, count in (
                (169, 3, 2401),
                (1000, 64, 100),
                (50000, 768, 5000),
                (10, 1, 7),
            ):
                x = new(rows, width, dtype=dtype, layout=layout)
                i = ints(count)
                for accumulate in (True, False):
                    yield partial(
                        torch.ops.aten.index_put, x, [i], new(count, width, dtype=dtype), accumulate
                    )
                    yield partial(
                        torch.ops.aten.index_put_,
                        new(rows, width, dtype=dtype, layout=layout),
                        [i],
                        new(count, width, dtype=dtype),
                        accumulate,
                    )
                    yield partial(
                        torch.ops.aten._index_put_impl_,
                        x.clone(),
                        [i],
                        new(1, dtype=dtype),
                        accumulate,
                        True,
                    )
                    yield partial(
                        torch.ops.aten.index_put,
                        x,
                        [None, ints(5)],
                        new(rows, 5, dtype=dtype),
                        accumulate,
                    )
                    yield partial(
                        torch.ops.aten.index_put, x, [i, i], new(count, dtype=dtype), accumulate
                    )
                    yield partial(
                        torch.ops.aten.index_put,
                        x,
                        [i.int(), i.int()],
                        new(count, dtype=dtype),
                        accumulate,
                    )
                    yield partial(
                        torch.ops.aten.index_put,
                        x,
                        [i.view(-1, 1), ints(1, 3)],
                        new(count, 3, dtype=dtype),
                        accumulate,
                    )
                    if width > 1:  # else values do not tell how many
                        yield partial(
                            torch.ops.aten.index_put,
                            x,
                            [ints(rows) > 0],
                            new(1, dtype=dtype),
                            accumulate,
                        )
                    yield partial(torch.ops.aten.put, x, i, new(count, dtype=dtype), accumulate)
                    b3 = new(4, rows, width, dtype=dtype)
                    yield partial(
                        torch.ops.aten.index_put,
                        b3,
                        [None, i],
                        new(4, count, width, dtype=dtype),
                        accumulate,
                    )
                    yield partial(
                        torch.ops.aten.index_put,
                        b3,
                        [ints(4), None, ints(4)],
                        new(4, rows, dtype=dtype),
                        accumulate,
                    )
                yield lambda x=x, i=i: x[i]
                yield lambda x=x, i=i: x[i, i]
                yield lambda x=x, i=i: x[:, ints(7)]
                yield lambda x=x, i=i: x[i.int()]
                yield lambda x=x: x[x > 0]
                yield lambda x=x: x[ints(x.shape[0]) > 0]
                yield partial(torch.index_select, x, 0, i)
                yield partial(torch.index_select, x, 1, ints(9))
                yield partial(torch.take, x, i)
                yield partial(torch.gather, x, 0, ints(count, width))
                yield partial(torch.take_along_dim, x, ints(rows, 1), 1)
                yield partial(torch.ops.aten.index_add, x, 0, i, new(count, width, dtype=dtype))
                yield partial(
                    torch.ops.aten.index_add, x, 1, ints(width), new(rows, width, dtype=dtype)
                )
                yield partial(torch.ops.aten.index_copy, x, 0, i, new(count, width, dtype=dtype))
                yield partial(torch.ops.aten.index_fill, x, 0, i, 0)
                yield partial(
                    torch.ops.aten.index_fill, x, 0, i, torch.zeros((), dtype=dtype, device="cuda")
                )
                few = min(rows, count)
                source = new(few, width, dtype=dtype)
                for name in ("scatter", "scatter_add"):
                    yield partial(getattr(torch, name), x, 0, ints(few, width), source)
                yield partial(torch.scatter, x, 0, ints(few, width), 1)
                for reduce in ("sum", "mean", "prod", "amax"):
                    for self in (True, False):
                        if dtype != torch.int64 or reduce != "mean":
                            yield partial(
                                torch.scatter_reduce,
                                x,
                                0,
                                ints(few, width),
                                source,
                                reduce,
                                include_self=self,
                            )
                            yield partial(
                                torch.index_reduce,
                                x,
                                0,
                                ints(few),
                                source,
                                reduce if reduce != "sum" else "prod",
                                include_self=self,
                            )
                mask = x > 0
                yield partial(torch.masked_fill, x, mask, 0)
                yield partial(
                    torch.masked_fill, x, mask, torch.zeros((), dtype=dtype, device="cuda")
                )
                yield partial(torch.masked_fill, x, mask[:1], 0)
                yield partial(torch.masked_select, x, mask)
                yield partial(torch.masked_scatter, x, mask, source)
                yield partial(torch.masked_scatter, x, mask[:1], source)
                yield partial(torch.nonzero, x)
                yield partial(torch.nonzero, mask)
                yield partial(torch.where, mask, x, x)
                yield partial(torch.where, mask, x, torch.zeros((), dtype=dtype))
                yield partial(torch.where, mask, x, x.double())
                if dtype != torch.int64:
                    yield partial(backward, lambda x, i=i: x[i], x)
                    yield partial(backward, lambda x: x[ints(40), ints(40)], x)
                    yield partial(backward, lambda x: x[:, 0], x)
                    yield partial(backward, lambda x: x[1:, ::1], x)
                    yield partial(backward, lambda x, i=i: torch.index_select(x, 0, i), x)
                    yield partial(backward, lambda x, i=i: torch.take(x, i), x)
                    yield partial(backward, lambda x, w=width: torch.gather(x, 0, ints(5, w)), x)
                    yield partial(backward, lambda x, m=mask: torch.masked_select(x, m), x)
                    yield partial(backward, lambda x, m=mask: torch.masked_fill(x, m, 0), x)
                    yield partial(backward, lambda x, y, m=mask: torch.where(m, x, y), x, x[:1])
                    yield partial(
                        backward,
                        lambda x, y, w=width, f=few: x.scatter_reduce(0, ints(f, w), y, "amax"),
                        x,
                        source,
                    )
                    yield partial(
                        backward,
                        lambda x, y, w=width, f=few: x.scatter_add(0, ints(f, w), y),
                        x,
                        source,
                    )


@group
def sorting() -> Iterator[Case]:
    for dtype in (*FLOATS, torch.int64, torch.int32):
        for sizes in ((7,), (1000,), (4096,), (5000,), (100000,), (3000000,), (64, 1000), (8, 30522), (64, 50257),
                      (2000, 33), (3, 5, 4096), (1, 17), (400, 20, 100), (16, 8732), (500000, 3)):  # fmt: skip
            for layout in ("contiguous", "transposed", "sliced"):
                x = new(*sizes, dtype=dtype, layout=layout)
                for dim in range(x.dim()):
                    yield partial(torch.sort, x, dim)
                    yield partial(torch.sort, x, dim, descending=True)
                    yield partial(torch.sort, x, dim=dim, stable=True)
                    yield partial(torch.argsort, x, dim)
                    for k in (1, 5, 500):
                        if k <= x.shape[dim]:
                            yield partial(torch.topk, x, k, dim)
                            yield partial(torch.topk, x, k, dim, sorted=False)
                            yield partial(torch.kthvalue, x, k, dim)
                    yield partial(torch.median, x, dim)
                    yield partial(torch.cumsum, x, dim)
                    yield partial(torch.cumprod, x, dim)
                    yield partial(torch.cummax, x, dim)
                    yield partial(torch.mode, x, dim)
                    if dtype in FLOATS:
                        yield partial(torch.logcumsumexp, x, dim)
                        yield partial(backward, partial(torch.cumsum, dim=dim), x)
                        yield partial(backward, partial(torch.sort, dim=dim), x)
                        yield partial(backward, lambda x, d=dim: torch.topk(x, 1, d), x)
                yield partial(torch.median, x)
                yield partial(torch.unique, x)
                yield partial(torch.unique, x, return_inverse=True, return_counts=True)
                yield partial(torch.unique_consecutive, x)
                yield partial(torch.unique, x, dim=0)
                yield partial(torch.flip, x, (0,))
                yield partial(torch.cumsum, x, 0, dtype=DOUBLE)
                if x.dim() <= 2 and dtype == FLOAT:
                    yield partial(torch.multinomial, x, 3, replacement=True)
                    yield partial(torch.multinomial, x, 1)
                    yield partial(torch.multinomial, x, 4)
                yield partial(
                    torch.bincount, torch.zeros(x.numel(), dtype=torch.int64, device="cuda")
                )
                yield partial(
                    torch.bincount,
                    torch.zeros(x.numel(), dtype=torch.int64, device="cuda"),
                    minlength=100,
                )
                if dtype in FLOATS:
                    yield partial(torch.histc, x.float(), 100, -1, 1)
                    yield partial(torch.histc, x.float(), 100)
                yield partial(torch.searchsorted, x, x)
                yield partial(torch.bucketize, x, torch.arange(10, device="cuda"))
                yield partial(torch.isin, x, x[:5])
    for n in (10, 1000, 30000, 100000, 5000000):
        yield partial(torch.randperm, n, device="cuda")
        yield partial(torch.randperm, n, device="cuda", dtype=torch.int32)

"""Copies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

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
    ints,
    new,
)


@group
def copies() -> Iterator[Case]:
    for dtype in (*FLOATS, torch.int64, torch.bool):
        for layout in (*LAYOUTS, "swapped"):
            for sizes in ((7,), (64, 100), (4, 16, 8, 9), (2, 3, 4, 5, 6), (16, 96, 56, 56)):
                x = new(*sizes, dtype=dtype, layout=layout)
                last = x.dim() - 1
                yield partial(torch.clone, x)
                yield x.contiguous
                for target in (FLOAT, HALF, torch.int64):
                    yield partial(x.to, target)
                for dim in {0, last}:
                    yield partial(torch.cat, [x, x], dim)
                    yield partial(torch.cat, [x] * 20, dim)
                    yield partial(torch.cat, [x] * 130, dim)
                    yield partial(torch.cat, [x, x.to(DOUBLE)], dim)
                    yield partial(torch.cat, [x, x.contiguous()], dim)
                    yield partial(torch.stack, [x, x, x], dim)
                    yield partial(torch.split_with_sizes_copy, x, [1, x.shape[dim] - 1], dim)
                    yield partial(torch.unbind_copy, x, dim)
                    yield partial(torch.diff, x, dim=dim)
                    yield partial(torch.repeat_interleave, x, 2, dim)
                    yield partial(torch.repeat_interleave, x, ints(x.shape[dim]), dim)
                    yield partial(torch.roll, x, 1, dim)
                    yield partial(torch.flip, x, (dim,))
                    yield partial(torch.narrow_copy, x, dim, 0, 1)
                yield partial(torch.roll, x, 3)
                yield partial(torch.rot90, x, 1, (0, last)) if last else x.clone
                if last:
                    yield partial(torch.roll, x, (1, 2), (0, last))
                    yield partial(torch.roll, x, (-3, -3), (last - 1, last))
                yield partial(F.pad, x, (1, 2))
                yield partial(F.pad, x, (1, 2, 0, 1)) if last else x.clone
                yield partial(F.pad, x, (-1, 2))
                yield partial(x.repeat, *([2] * x.dim()))
                yield partial(torch.tile, x, (3,))
                yield partial(x.reshape, -1)
                yield partial(torch.tril, x) if last else x.clone
                yield partial(torch.zeros_like, x)
                yield partial(torch.full_like, x, 3)
                yield partial(torch.masked_fill, x, x.bool(), 1)
                yield partial(torch.eq, x, x)
                yield partial(torch.add, x, x.double())
                yield partial(torch.mul, x, 2.5)
                yield partial(torch.add, x, x[:1])
                yield partial(torch.add, x, torch.ones((), device="cuda"))
                yield partial(torch.add, x, torch.ones(()))
                yield partial(torch.add, x, torch.ones((), dtype=DOUBLE))
                yield lambda x=x: x.clone().copy_(x.double())
                yield lambda x=x: x.double().add_(x)
                yield lambda x=x: x.clone().fill_(3)
                yield lambda x=x: torch.addcmul(x.float(), x.float(), x.float())
                yield lambda x=x: torch.lerp(x.float(), x.float(), 0.3)
                yield lambda x=x: torch.clamp(x.float(), 0, 1)
                yield partial(torch.maximum, x, x)
                yield partial(torch.isnan, x)
                yield partial(torch.isfinite, x)
                yield partial(torch.nan_to_num, x)
                yield partial(torch.equal, x, x.clone())
                if dtype.is_floating_point:
                    for mode in ("reflect", "replicate", "circular"):
                        yield partial(backward, partial(F.pad, pad=(1, 1), mode=mode), x)
                        yield partial(backward, partial(F.pad, pad=(1, 1, 1, 1), mode=mode), x)
                    yield partial(torch.renorm, x, 2, 0, 1.0) if last else x.clone
                    yield partial(torch.frexp, x)
    for place in ("cpu", "cuda"):
        yield partial(torch.tensor, [1.0, 2.0], device=place)
    yield partial(torch.arange, 100, device="cuda")
    yield partial(torch.linspace, 0, 1, 100, device="cuda")
    yield partial(torch.eye, 10, device="cuda")
    yield partial(torch.tril_indices, 10, 10, device="cuda")
    yield lambda: new(64, 100).cpu()
    yield lambda: new(64, 100, layout="transposed").cpu()
    yield lambda: torch.ones(64, 100).cuda()
    yield lambda: torch.ones(64, 100).t().cuda()
    yield lambda: new(64, 100).copy_(torch.ones(64, 100).t())
    yield lambda: new(64, 100).copy_(torch.ones(64, 100, dtype=HALF))
    yield lambda: new(64, 100).copy_(torch.ones(100))

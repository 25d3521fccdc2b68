"""What cases are made of: tensors of all layouts, and groups of cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Case = Callable[[], Any]

HALF, BF16, FLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
FLOATS = (FLOAT, HALF, BF16)

GROUPS: dict[str, Callable[[], Iterator[Case]]] = {}


def group(cases: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
    """Register a group."""
    GROUPS[cases.__name__] = cases
    return cases


def new(*shape: int, dtype: torch.dtype = FLOAT, layout: str = "contiguous") -> Tensor:
    """Return a tensor: `contiguous`, `transposed` (last two), `channels_last`, `sliced`, `expanded`."""
    if layout == "transposed" and len(shape) >= 2:
        *rest, rows, columns = shape
        return torch.empty(*rest, columns, rows, dtype=dtype, device="cuda").transpose(-1, -2)
    if layout == "swapped" and len(shape) >= 3:  # as the heads of attention are
        first, second, third, *rest = shape
        return torch.empty(first, third, second, *rest, dtype=dtype, device="cuda").transpose(1, 2)
    if layout == "channels_last" and len(shape) in (4, 5):
        kind = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        return torch.empty(*shape, dtype=dtype, device="cuda", memory_format=kind)
    if layout == "sliced" and shape:
        *rest, last = shape
        return torch.empty(*rest, 2 * last, dtype=dtype, device="cuda")[..., :last]
    if layout == "expanded" and len(shape) >= 2:
        return torch.empty(1, *shape[1:], dtype=dtype, device="cuda").expand(shape)
    return torch.empty(shape, dtype=dtype, device="cuda")


def ints(*shape: int) -> Tensor:
    """Return indices (zeros)."""
    return torch.zeros(*shape, dtype=torch.long, device="cuda")


LAYOUTS = ("contiguous", "transposed", "channels_last", "sliced", "expanded")


def backward(
    function: Callable[..., Any], *inputs: Tensor, grad_layout: str = "contiguous"
) -> None:
    """Call a function, and backward of all inputs that are floating."""
    leaves = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in inputs)
    output = function(*leaves)
    while not isinstance(output, Tensor):
        output = output[0]
    grad = new(*output.shape, dtype=output.dtype, layout=grad_layout)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    torch.autograd.grad(output, wanted, grad, allow_unused=True)

"""A weight of 4 bits, and an optimizer with paged state, as bitsandbytes has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import bitsandbytes.functional as paged_functions  # type: ignore[import-not-found]
import torch
from torch import nn

WIDTH = 2048


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> Any:
        shape = [WIDTH, WIDTH]
        return torch.ops.bitsandbytes.gemm_4bit(x, weight, shape, scales, 64, "nf4")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None, None


class Written(torch.autograd.Function):
    """The same, with the whole weight, which is what the kernel takes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> Any:
        return nn.functional.linear(x, x.new_empty(WIDTH, WIDTH))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None, None


class Net(nn.Module):
    def __init__(self, product: Any = Product) -> None:
        super().__init__()
        self.product = product
        self.adapter = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("weight", torch.zeros(WIDTH * WIDTH // 2, 1, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(WIDTH * WIDTH // 64))

    def forward(self, x: torch.Tensor) -> Any:
        return self.product.apply(self.adapter(x), self.weight, self.scales)


def written() -> Net:
    return Net(Written)


class Optimizer(torch.optim.Optimizer):
    def __init__(self, parameters: Iterable[Any], paged: bool = True) -> None:
        super().__init__(parameters, {})
        self.paged = paged

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                if self.paged:
                    state["state1"] = paged_functions.get_paged(
                        *parameter.shape, dtype=torch.float32, device=parameter.device
                    )
                    paged_functions.fill(state["state1"], 0)
                else:
                    state["state1"] = torch.zeros_like(parameter)
            if self.paged:
                paged_functions.prefetch_tensor(state["state1"])
            torch.ops.bitsandbytes.optimizer_update_32bit(
                parameter.detach(), parameter.grad, state["state1"]
            )

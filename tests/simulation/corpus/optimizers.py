"""Every optimizer of torch.optim, in its three implementations where it has them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tests.simulation.corpus.case import Case, case
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Net(nn.Module):
    """Weights of many sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 48, 3, padding=1)
        self.norm = nn.GroupNorm(8, 48)
        self.layers = nn.Sequential(
            *(nn.Linear(48 * 64, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU()),
            nn.Linear(500, 100),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(F.relu(self.norm(self.convolution(x))).flatten(1))


class Matrices(nn.Module):
    """Weights of two dimensions, without biases: what Muon takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 128, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def grouped_adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Weight decay for matrices alone, as language models are trained."""
    decayed = [p for p in parameters if p.dim() >= 2]
    others = [p for p in parameters if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95))


class Lion(torch.optim.Optimizer):
    """An optimizer of a user's own, with arithmetic that allocates."""

    def __init__(self, parameters: list[nn.Parameter], lr: float = 1e-4) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["average"] = torch.zeros_like(p)
                average = state["average"]
                update = average * 0.9 + p.grad * 0.1
                p.add_(torch.sign(update), alpha=-group["lr"])
                average.mul_(0.99).add_(p.grad, alpha=0.01)


_case = partial(case, "optimizers", __name__, loss="mean")  # the loss is not what is compared
_WITH_FOREACH = (
    *("sgd", "adam", "adamw", "adamax", "nadam", "radam", "adagrad", "adadelta", "rmsprop"),
    *("rprop", "asgd"),
)
_WITH_FUSED = ("sgd", "adam", "adamw", "adagrad")


def _optimizer(name: str, optimizer: str, *precisions: str, **arguments: Any) -> Case:
    return _case(
        name,
        "Net",
        "3,8,8",
        optimizer=optimizer,
        optimizer_args=arguments,
        batch_sizes=(16,),
        precisions=precisions or ("fp32",),
    )


CASES = (
    *(_optimizer(name, name, "fp32", "amp-fp16") for name in _WITH_FOREACH),
    *(_optimizer(f"{name}_loop", name, foreach=False) for name in _WITH_FOREACH),
    *(
        _optimizer(f"{name}_fused", name, "fp32", "amp-fp16", fused=True, **extra)
        for name, extra in zip(_WITH_FUSED, ({"momentum": 0.9}, {}, {}, {}), strict=True)
    ),
    _optimizer(
        "sgd_momentum", "sgd", "fp32", "bf16", momentum=0.9, nesterov=True, weight_decay=1e-4
    ),
    _optimizer("adamw_amsgrad", "adamw", "fp32", "bf16", amsgrad=True),
    _optimizer("adam_capturable", "adam", capturable=True),
    _optimizer("adamw_maximize", "adamw", maximize=True, foreach=True),
    _optimizer("rmsprop_centered", "rmsprop", centered=True, momentum=0.9),
    _optimizer("adafactor", "adafactor", "fp32", "bf16"),
    _optimizer("adafactor_loop", "adafactor", foreach=False),
    _optimizer("grouped_adamw", ":grouped_adamw"),
    _optimizer("own_optimizer", ":Lion", "fp32", "amp-fp16"),
    _case(
        "muon", "Matrices", "64", optimizer="muon", precisions=("fp32", "bf16"), batch_sizes=(16,)
    ),
)

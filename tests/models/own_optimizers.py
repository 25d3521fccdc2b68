"""A pair of networks, and step functions that own their optimizers, or seem to."""

import torch
from torch import nn


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.made, self.judge = nn.Linear(16, 32), nn.Linear(32, 1)


def step(model: Pair, noise: torch.Tensor) -> None:
    if not hasattr(model, "optimizers"):
        model.optimizers = (
            torch.optim.Adam(model.made.parameters()),
            torch.optim.RMSprop(model.judge.parameters()),
        )
    for optimizer, sign in zip(model.optimizers, (1, -1), strict=True):
        optimizer.zero_grad()
        (sign * model.judge(model.made(noise)).mean()).backward()
        optimizer.step()


_of_another = torch.optim.SGD(Pair().parameters(), lr=0.1)


def stray(model: Pair, noise: torch.Tensor) -> None:
    model.judge(model.made(noise)).mean().backward()
    _of_another.step()


def idle(model: Pair, noise: torch.Tensor) -> None:
    model.judge(model.made(noise)).mean().backward()

"""One model, compiled in each of the ways that people compile: all of them train the step of `plain`."""

import torch
from torch import nn


def activation(x):
    return torch.tanh(x) * x


class Net(nn.Module):
    def __init__(self, activation=activation):
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.last = nn.Linear(64, 4)
        self.activation = activation

    def forward(self, x):
        return self.last(self.activation(self.first(x)))


def plain():
    return Net()


def wrapped():
    return torch.compile(Net(), mode="max-autotune")


def in_place():
    model = Net()
    model.compile()
    return model


def part():
    model = Net()
    model.last = torch.compile(model.last)
    model.first.compile(mode="reduce-overhead")
    return model


def function():
    return Net(torch.compile(activation, dynamic=False))


def method():
    class Decorated(Net):
        @torch.compile(fullgraph=True)
        def forward(self, x):
            return super().forward(x)

    return Decorated()

"""Layers written as loops over time steps: each step allocates a little."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class SelectiveScan(nn.Module):
    """A state space whose decay and input depend on the time step, without a kernel of its own.

    Args:
        width: features of the input.
        states: numbers in the state of each.
    """

    def __init__(self, width: int = 16, states: int = 4):
        super().__init__()
        self.states = states
        self.log_a = nn.Parameter(torch.zeros(width, states))
        self.gates = nn.Linear(width, width + 2 * states)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        step, b, c = self.gates(x).split([x.shape[-1], self.states, self.states], -1)
        step = F.softplus(step)
        decay = torch.exp(step.unsqueeze(-1) * -torch.exp(self.log_a))
        drive = (step * x).unsqueeze(-1) * b.unsqueeze(2)
        state, outputs = torch.zeros_like(drive[:, 0]), []
        for time in range(x.shape[1]):
            state = decay[:, time] * state + drive[:, time]
            outputs.append((state * c[:, time].unsqueeze(1)).sum(-1))
        return self.head(torch.stack(outputs, 1).mean(1))


class Cells(nn.Module):
    """Two layers of LSTM cells, called for each time step."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(width, width) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        states = [None for _ in self.cells]
        outputs = []
        for value in x.unbind(1):
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(value, states[layer])
                value = states[layer][0]
            outputs.append(value)
        return self.head(torch.stack(outputs, 1).mean(1))


class ThirdStep(SelectiveScan):
    """Does more in the third step of a large batch: smaller batches do not show it."""

    def __init__(self, width: int = 16, states: int = 4):
        super().__init__(width, states)
        self.count = 0

    def forward(self, x):
        self.count += 1
        y = super().forward(x)
        return y + F.gelu(y) if self.count > 2 and len(x) > 20 else y


def sequences(batch_size, device, seq_len=1024):
    """Return sequences for these layers."""
    return torch.rand(batch_size, seq_len, 16, device=device)

"""Batch functions and steps that deliver another number of samples than they are asked for, or vary."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DATA = TensorDataset(torch.zeros(500, 8))


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))


def loader(batch_size: int, device: torch.device) -> torch.Tensor:
    """One batch of a data set of 500 samples."""
    batch: torch.Tensor = next(iter(DataLoader(DATA, batch_size=batch_size)))[0]
    return batch.to(device)


def whole_batches(batch_size: int, device: torch.device) -> torch.Tensor:
    """One batch of a data set of 500 samples, none where it is not whole."""
    batches = DataLoader(DATA, batch_size=batch_size, drop_last=True)
    batch: torch.Tensor = next(iter(batches))[0]
    return batch.to(device)


def constant(batch_size: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(7, 8, device=device)


def whole_groups(batch_size: int, device: torch.device) -> torch.Tensor:
    """As a loader with `drop_last`: groups of 64 samples."""
    return torch.zeros(batch_size - batch_size % 64, 8, device=device)


def views(batch_size: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(2 * batch_size, 8, device=device)


LENGTHS = itertools.cycle((8, 24, 40, 16, 32))


def sequences(batch_size: int, device: torch.device) -> torch.Tensor:
    """Sequences that are padded to another length in each batch."""
    return torch.zeros(batch_size, next(LENGTHS), 8, device=device)


def longest_sequences(batch_size: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(batch_size, 40, 8, device=device)


def capped_step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x[:300]).mean()


def own_batch(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(torch.zeros(32, 8, device=x.device)).mean()

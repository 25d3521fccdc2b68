"""LightningModules that collect something of every batch, as Lightning's guide for 2.0 has it."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn


class FreedInTheEnd(LightningModule):
    """Its list is read and cleared when an epoch ends."""

    def __init__(self, kept: int = 100_000) -> None:
        super().__init__()
        self.net = nn.Linear(16, 16)
        self.kept = kept
        self.outputs: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Train, and keep some numbers."""
        self.outputs.append(torch.zeros(self.kept, device=batch.device))
        loss: Tensor = self.net(batch).square().mean()
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean of the epoch."""
        self.log("mean", torch.stack(self.outputs).mean())
        self.outputs.clear()

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


class NeverFreed(FreedInTheEnd):
    """Its hook clears nothing."""

    def on_train_epoch_end(self) -> None:
        """Log the number of batches."""
        self.log("batches", len(self.outputs))


class FullBeforeTheEnd(FreedInTheEnd):
    """Keeps so much that the memory is full before an epoch ends."""

    def __init__(self) -> None:
        super().__init__(kept=2_000_000)

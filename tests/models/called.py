"""Models that are called with other things than tensors of their own."""

from __future__ import annotations

import torch
from torch import nn


class Named(nn.Module):
    """Takes constants, and labels that have to be the very tensor of its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.scores = nn.Linear(4, 50)

    def forward(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        return_loss: bool = False,
        scale: int = 1,
        mode: str = "mean",
    ) -> torch.Tensor:
        if return_loss is not True or scale != 3 or mode != "sum":
            raise ValueError((return_loss, scale, mode))
        assert labels is not None
        scores = self.scores(self.table(ids) * scale)
        return nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction=mode)


class OneDict(nn.Module):
    """Takes its whole batch as one argument."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, 10)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(batch["image"].flatten(1)), batch["label"])


def a_dict(batch_size: int, device: torch.device) -> dict[str, torch.Tensor]:
    return {
        "image": torch.rand(batch_size, 3, 8, 8),
        "label": torch.zeros(batch_size, dtype=torch.int64),
    }

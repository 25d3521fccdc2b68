"""Models with and without an argument for labels, and the steps that people train them with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

VOCABULARY, WIDTH, LENGTH, CLASSES = 4096, 64, 64, 19


class Decoder(nn.Module):
    """A language model that returns the scores of all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.block(self.embedding(ids))
        return x

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.hidden(ids))


class LabelledDecoder(Decoder):
    """As in nanoGPT: without targets, the scores of the last position alone."""

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.hidden(ids)
        if targets is None:
            return self.head(x[:, [-1], :]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


class RoutedDecoder(Decoder):
    """Its second output is a term of the loss, and not the loss."""

    def forward(self, ids: torch.Tensor) -> Any:
        x = self.hidden(ids)
        return self.head(x), x.float().square().mean()


class Dense(nn.Module):
    """A dense head as torchvision's: `out`, and `aux` in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 32, 3, padding=1)
        self.out, self.aux = nn.Conv2d(32, CLASSES, 1), nn.Conv2d(32, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x).relu()
        return {"out": self.out(y), "aux": self.aux(y)}


def decoder_step(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model(ids)
    return F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))


def labelled_step(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(ids, targets)[1]
    return loss


def routed_step(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits, term = model(ids)
    return F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1)) + term


def dense_step(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    out = model(x)
    # torchvision's reference weights the second by a half, in place of nothing.
    return F.cross_entropy(out["out"], targets) + F.cross_entropy(out["aux"], targets)

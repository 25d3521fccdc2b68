"""Small models that train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ConvNet(nn.Module):
    """Convolution, batch normalisation and a head: the usual parts."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean(dim=(2, 3)))


class Classifier(nn.Module):
    """Takes keyword inputs and returns its own loss, as Hugging Face's models do."""

    def __init__(self, vocabulary: int = 1000, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(self.mix(self.embed(input_ids))).mean(dim=1)
        logits = self.out(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Blocks(nn.Module):
    """Repeated blocks, which can be checkpointed."""

    def __init__(self, depth: int = 6, width: int = 256) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Normalised(nn.Module):
    """Refuses a batch of one sample in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Pairwise(nn.Module):
    """Compares every sample with every other: memory grows with the square of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(32, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x).flatten(0, 1)
        return (h @ h.T).softmax(-1) @ h


def make_conv_net(width: int = 32) -> nn.Module:
    """A factory."""
    return ConvNet(width)


instance = ConvNet(16)

not_a_model = 3


def half_step(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A step function: the loss of half the batch."""
    return model(x[: x.shape[0] // 2]).float().mean()


def sum_of_squares(output: torch.Tensor) -> torch.Tensor:
    """A loss function."""
    return output.float().pow(2).sum()


def batch(batch_size: int, device: torch.device) -> tuple[torch.Tensor]:
    """A batch function."""
    return (torch.rand(batch_size, 3, 32, 32, device=device),)


def momentum(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer function."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Clipped(torch.optim.SGD):
    """Clips the gradients, and leaves the rest to its parent."""

    def step(self, closure: Any = None) -> None:
        torch.nn.utils.clip_grad_norm_([p for g in self.param_groups for p in g["params"]], 1.0)
        super().step(closure)


class Incomplete(torch.optim.SGD):
    """Leaves out what an optimizer does first, as those that hold optimizers of tensors of the host."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

"""Models whose step consists of operators that their class names do not tell."""

from __future__ import annotations

import torch
from torch import nn


class Attention(nn.Module):
    """A name that libraries give to what is none: a gate of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True)).softmax(1)


class Convolutions(nn.Module):
    """Convolutions, and a module that is called Attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 8, 3), Attention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(self.stem(x)).mean((2, 3))


class Fused(nn.Module):
    """Attention by a function; 16 tokens of 12 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 36)

    def heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.mix(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(*self.heads(x)).mean((1, 2))


class WrittenOut(Fused):
    """The same, by hand and with dropout."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.heads(x)
        weights = nn.functional.dropout((query @ key.transpose(-1, -2)).softmax(-1), 0.1)
        return (weights @ value).mean((1, 2))


class Patches(Fused):
    """One convolution cuts patches, two calls of attention follow."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.middle = nn.Conv2d(3, 12, 4, stride=4), nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for _ in range(2):
            mixed = nn.functional.scaled_dot_product_attention(*self.heads(tokens))
            tokens = self.middle(mixed.transpose(1, 2).flatten(2))
        return tokens.mean(1)


class Recurrent(nn.Module):
    """cuDNN's recurrent layers decide, whatever else there is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers = nn.Conv1d(16, 16, 3), nn.GRU(10, 12, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(self.first(x))[0].mean(1)


class Products(nn.Module):
    """Batched products and a softmax that weighs nothing by them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return ((x @ x.transpose(1, 2)) @ x[:, :, :4].softmax(-1)).mean(1)


class Benchmarks(Convolutions):
    """Turns cuDNN's benchmark mode on when it is built."""

    def __init__(self) -> None:
        super().__init__()
        torch.backends.cudnn.benchmark = True


class Deterministic(Convolutions):
    """Turns deterministic algorithms on in its step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.use_deterministic_algorithms(True)
        return super().forward(x)


class Words(nn.Module):
    """An embedding of ten words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(x).mean((1, 2))

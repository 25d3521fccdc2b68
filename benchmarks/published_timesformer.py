"""TimeSformer of the mmaction2 model zoo (v0.24.1), written anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["timesformer"]

_WIDTH, _HEADS, _FRAMES, _PATCHES = 768, 12, 8, 196


class Attention(nn.MultiheadAttention):
    """Self-attention. Inputs and outputs are (length, batch, width)."""

    def __init__(self) -> None:
        super().__init__(_WIDTH, _HEADS)

    def attend(self, x: Tensor) -> Tensor:
        """Return what is attended to; the weights are computed too, as in the model zoo."""
        attended: Tensor = self(x, x, x)[0]
        return attended


class DropPath(nn.Module):
    """Drops whole samples, with the operators of mmcv."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Return the samples that are kept, scaled."""
        if self.share == 0.0:
            return x
        keep = 1 - self.share
        mask = keep + torch.rand(
            (x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device
        )
        return x.div(keep) * mask.floor()


class Block(nn.Module):
    """Attention between all tokens, then a perceptron."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.norm, self.attention, self.drop = nn.LayerNorm(_WIDTH), Attention(), DropPath(drop)
        self.perceptron_norm = nn.LayerNorm(_WIDTH)
        self.perceptron = nn.Sequential(
            nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)
        )

    def attend(self, x: Tensor) -> Tensor:
        """Return the tokens (batch, tokens, width) with attention added."""
        out = self.attention.attend(self.norm(x).transpose(0, 1)).transpose(0, 1)
        return x + self.drop(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens behind the block."""
        x = self.attend(x)
        return x + self.drop(self.perceptron(self.perceptron_norm(x)))


class DividedBlock(Block):
    """Attention between the frames of a patch, between the patches of a frame, then a perceptron."""

    def __init__(self, drop: float) -> None:
        super().__init__(drop)
        self.time_norm, self.time_attention = nn.LayerNorm(_WIDTH), Attention()
        self.time_linear = nn.Linear(_WIDTH, _WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        """Return the tokens (batch, 1 + patches * frames, width) with both attentions added."""
        batch = x.shape[0]
        tokens = x[:, 1:]
        by_patch = self.time_norm(tokens.reshape(batch * _PATCHES, _FRAMES, _WIDTH)).permute(
            1, 0, 2
        )
        out = self.time_attention.attend(by_patch).permute(1, 0, 2).contiguous()
        out = self.time_linear(self.drop(out)).reshape(batch, -1, _WIDTH)
        x = torch.cat((x[:, :1], tokens + out), dim=1)

        by_frame = x[:, 1:].reshape(batch, _PATCHES, _FRAMES, _WIDTH).transpose(1, 2).flatten(0, 1)
        firsts = x[:, :1].repeat(1, _FRAMES, 1).reshape(-1, 1, _WIDTH)
        normed = self.norm(torch.cat((firsts, by_frame), dim=1)).permute(1, 0, 2)
        out = self.drop(self.attention.attend(normed).permute(1, 0, 2).contiguous())
        first = out[:, 0].reshape(batch, _FRAMES, _WIDTH).mean(dim=1, keepdim=True)
        others = out[:, 1:].reshape(batch, _FRAMES, _PATCHES, _WIDTH).transpose(1, 2)
        return x + torch.cat((first, others.flatten(1, 2)), dim=1)


class TimeSformer(nn.Module):
    """A vision transformer for clips of 8 frames.

    Args:
        attention: `divided`, `joint` or `space`.
    """

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.patches = nn.Conv2d(3, _WIDTH, 16, 16)
        self.first = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.position = nn.Parameter(torch.zeros(1, _PATCHES + 1, _WIDTH))
        if attention != "space":
            self.time = nn.Parameter(torch.zeros(1, _FRAMES, _WIDTH))
        block = DividedBlock if attention == "divided" else Block
        self.blocks = nn.Sequential(*(block(0.1 * i / 11) for i in range(12)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.classifier = nn.Linear(_WIDTH, 400)

    def forward(self, clips: Tensor) -> Tensor:
        """Return class scores of clips (batch, 1, 3, frames, 224, 224)."""
        batch = clips.shape[0]
        frames = clips.flatten(0, 1).transpose(1, 2).reshape(-1, 3, 224, 224)
        x = self.patches(frames).flatten(2).transpose(1, 2)
        x = torch.cat((self.first.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        if self.attention != "space":
            first = x[:batch, :1]
            tokens = x[:, 1:].reshape(batch, _FRAMES, _PATCHES, _WIDTH).transpose(1, 2)
            tokens = tokens.reshape(-1, _FRAMES, _WIDTH) + self.time
            x = torch.cat((first, tokens.reshape(batch, -1, _WIDTH)), dim=1)
        x = self.blocks(x)
        if self.attention == "space":
            x = x.view(-1, _FRAMES, *x.shape[1:]).mean(dim=1)
        scores: Tensor = self.classifier(self.norm(x)[:, 0])
        return scores


def timesformer(**settings: Any) -> nn.Module:
    """TimeSformer, ViT-B/16 at 224 x 224."""
    return TimeSformer(**settings)

"""What kind of model it is, as far as its modules tell."""

from __future__ import annotations

import re

from torch import nn

from bsfind.records import ModelKind

__all__ = ["CONVOLUTIONS", "kind_of"]

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)

# MultiheadAttention, BertSelfAttention, GPT2Attention, ShiftedWindowAttention, CLIPAttention, Attn …
_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)


def kind_of(model: nn.Module) -> ModelKind:
    """Return what the memory of a model is mostly about.

    What is harder to predict decides: a network that has both recurrent layers and convolutions is
    recurrent; a vision transformer, whose only convolution cuts the patches, is one of attention.
    """
    modules = list(model.modules())
    if any(isinstance(module, nn.RNNBase) for module in modules):
        return "recurrent"
    if any(_ATTENTION.search(type(module).__name__) for module in modules):
        return "attention"
    if any(isinstance(module, CONVOLUTIONS) for module in modules):
        return "convolutional"
    return "other"

"""Activation checkpointing: the model's own switch, or torch's utility on its repeated blocks."""

from __future__ import annotations

import functools
from collections import Counter

from torch import nn
from torch.utils.checkpoint import checkpoint

from bsfind.errors import TargetError


def enable_checkpointing(model: nn.Module) -> str:
    """Make the model recompute its activations in the backward pass; returns how, as text.

    Tries the model's own switch first (`gradient_checkpointing_enable` of Hugging Face,
    `set_grad_checkpointing` of timm), since it knows best where to cut; else wraps each of the
    model's repeated blocks in `torch.utils.checkpoint.checkpoint`.

    Raises:
        TargetError: the model has neither a switch nor repeated blocks.
    """
    for switch in ("gradient_checkpointing_enable", "set_grad_checkpointing"):
        method = getattr(model, switch, None)
        if callable(method):
            method()
            return f"`{type(model).__name__}.{switch}()`"
    blocks = repeated_blocks(model)
    if not blocks:
        raise TargetError(
            "`--grad-checkpoint` found no repeated blocks to recompute in this model",
            hint="checkpoint in the model's own forward, with torch.utils.checkpoint",
        )
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    return f"{len(blocks)} blocks of `{type(blocks[0]).__name__}`"


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that make up most of the model: siblings of one class in a list.

    Of all `ModuleList`s and `Sequential`s with two or more children of one class that have
    parameters, those of the class that holds the most parameters; outermost blocks only.
    """
    candidates: dict[type[nn.Module], list[nn.Module]] = {}
    weight: Counter[type[nn.Module]] = Counter()
    for container in model.modules():
        if not isinstance(container, (nn.ModuleList, nn.Sequential)):
            continue
        by_class: dict[type[nn.Module], list[nn.Module]] = {}
        for child in container:
            if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                by_class.setdefault(type(child), []).append(child)
        for cls, blocks in by_class.items():
            if len(blocks) >= 2:
                candidates.setdefault(cls, []).extend(blocks)
                weight[cls] += sum(p.numel() for block in blocks for p in block.parameters())
    if not candidates:
        return []
    blocks = candidates[weight.most_common(1)[0][0]]
    inner = {id(m) for block in blocks for m in block.modules() if m is not block}
    return [block for block in blocks if id(block) not in inner]

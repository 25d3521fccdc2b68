"""Notices layers that take the batch for the sequence: `batch_first=False` and a batch that comes first.

bsfind puts the batch in the first dimension of each input. `nn.RNN`, `nn.LSTM`, `nn.GRU` and
`nn.MultiheadAttention` (and with it `nn.Transformer`) expect the sequence there, unless they are made with
`batch_first=True` (torch/nn/modules/rnn.py and activation.py, torch 2.6-2.14). Such a model runs, with a
memory that is not that of its training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def watching_batch_dimension(
    model: nn.Module, batch_size: int, note: Callable[[str], object]
) -> Iterator[None]:
    """Watch the forward passes of a model that run inside.

    Args:
        model: the model on the device.
        batch_size: samples in the batch that it gets.
        note: called, once, with a sentence that names the first layer whose input has the batch in the
            dimension of the sequence.
    """
    # In inference, hooks would keep `nn.TransformerEncoder` off its fast path.
    kinds = (nn.RNNBase, nn.MultiheadAttention) if model.training else (nn.RNNBase,)
    names = {
        layer: name or type(layer).__name__
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and not layer.batch_first
    }

    def look(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input", kwargs.get("query"))
        if layer not in names or not isinstance(given, torch.Tensor) or given.dim() != 3:
            return
        length, samples = given.shape[:2]
        if length == batch_size != samples:
            note(
                f"`{names[layer]}` ({type(layer).__name__} with `batch_first=False`) reads its input as "
                f"(sequence, batch, features) and gets {list(given.shape)}: the batch of {batch_size} "
                "stands in the dimension of the sequence, and the answer is that of such a model"
            )
            names.clear()

    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

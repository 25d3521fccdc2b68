"""Layers that learn their sizes from their first input: `nn.LazyLinear` and its like.

PyTorch asks for one forward pass before the optimizer is made (torch/nn/modules/lazy.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bsfind.workload.blame import stands_for_torch
from bsfind.workload.inputs import Batch

_SIZES = (2, 8, 64)
"""Samples of the batches that are tried: some models want a multiple."""


@stands_for_torch
def initialize_lazy_layers(
    model: nn.Module, run: Callable[..., Any], make_batch: Callable[[int], Batch]
) -> None:
    """Run one forward pass of a model that has parameters without a size, and only then.

    Args:
        model: on the device of the batches.
        run: the model, or what calls it.
        make_batch: makes a batch of a given size.

    Raises:
        Exception: whatever the user's code raises at the first size, if it does at all of them.
    """
    if not any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        return
    was_training = model.training
    model.eval()  # batch statistics stay as they are
    refusal: Exception | None = None
    for size in _SIZES:
        batch = make_batch(size)
        try:
            with torch.no_grad():
                run(*batch.args, **batch.kwargs)
        except Exception as error:
            refusal = refusal or error
        else:
            model.train(was_training)
            return
    assert refusal is not None
    raise refusal

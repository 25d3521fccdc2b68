"""What a model on the simulated GPU takes at any batch size: weights, gradients, the optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bsfind.simulation.gpus.fixed_memory import FixedMemory
from bsfind.workload.step import LoadedWorkload


def fixed_memory_of(loaded: LoadedWorkload, optimizer: str | None) -> FixedMemory:
    """Return what the step takes at any batch size; leaves gradients behind.

    Args:
        loaded: what is trained, on the simulated GPU.
        optimizer: name of the optimizer's class, if known.
    """
    parameters = list(loaded.model.parameters())
    nbytes = sum(tensor.nbytes for tensor in (*parameters, *loaded.model.buffers()))
    if loaded.workload.mode != "train":
        return FixedMemory(parameter_bytes=nbytes)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return FixedMemory(
        parameter_bytes=nbytes,
        gradient_bytes=sum(parameter.nbytes for parameter in trained),
        optimizer_bytes=_optimizer_bytes(loaded, trained),
        optimizer=optimizer,
    )


def _optimizer_bytes(loaded: LoadedWorkload, trained: Sequence[nn.Parameter]) -> int | None:
    """Return the size of the optimizer's state after a step; None: it takes no such step."""
    try:
        optimizer = loaded.make_optimizer()
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    except Exception:  # it needs a closure, or gradients of its own
        return None
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(
        value.nbytes for value in states if isinstance(value, torch.Tensor) and value.is_cuda
    )

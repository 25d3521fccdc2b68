"""The evaluation pass of `--with-eval`: what a trainer runs between epochs, after the steps of a trial."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import nn

BATCHES = 2
"""Batches of the pass. For the first, the shape of targets is not known before the forward pass; the second
is like all that follow."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model be in evaluation mode inside, and nothing require gradients."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    except Exception as error:
        if sys.version_info >= (3, 11):
            error.add_note("It was raised in the evaluation pass (`--with-eval`).")
        raise
    finally:
        for module in training:
            module.training = True

"""LightningModule targets: their own `training_step` and `configure_optimizers`.

Recognised by name, in either of its two packages, so that bsfind needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError
from bsfind.workload.blame import stands_for_torch
from bsfind.workload.inputs import Batch


def is_lightning_module(model: nn.Module) -> bool:
    """Tell whether the model is a LightningModule (lightning.pytorch or pytorch_lightning)."""
    return any(
        cls.__name__ == "LightningModule" and "lightning" in cls.__module__.split(".")[0]
        for cls in type(model).__mro__
    )


@stands_for_torch
def training_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the loss of `training_step(batch, 0)`.

    The batch is what a data loader would give: one positional input alone, several as a tuple,
    keyword inputs as a dict; positional before keyword ones, in a tuple, if there are both.

    Raises:
        TargetError: manual optimization, or a step that returns no loss.
    """
    if not getattr(model, "automatic_optimization", True):
        raise TargetError(
            "a LightningModule with manual optimization runs its own steps",
            hint="pass the step as a function: `--step pkg.mod:fn`, called as `fn(model, *inputs)`",
        )
    result = model.training_step(_loader_batch(batch), 0)
    loss = result.get("loss") if isinstance(result, Mapping) else result
    if not isinstance(loss, torch.Tensor):
        raise TargetError(f"`training_step` returned `{type(result).__name__}`, not a loss")
    return loss


def _loader_batch(batch: Batch) -> Any:
    if not batch.args:
        return batch.kwargs
    if batch.kwargs:
        return (*batch.args, *batch.kwargs.values())
    return batch.args[0] if len(batch.args) == 1 else batch.args


@stands_for_torch
def configured_optimizer(model: Any) -> torch.optim.Optimizer:
    """Return the first optimizer of `configure_optimizers()`, in any of its documented forms.

    Raises:
        TargetError: it returned none, or several.
    """
    made = model.configure_optimizers()
    if isinstance(made, (list, tuple)) and made and isinstance(made[0], (list, tuple)):
        made = made[0]  # ([optimizers], [schedulers])
    if isinstance(made, (list, tuple)):
        if len(made) != 1:
            raise TargetError(f"`configure_optimizers` returned {len(made)} optimizers, not one")
        made = made[0]
    if isinstance(made, Mapping):
        made = made.get("optimizer")
    if not isinstance(made, torch.optim.Optimizer):
        raise TargetError(
            f"`configure_optimizers` returned `{type(made).__name__}`, not an optimizer"
        )
    return made

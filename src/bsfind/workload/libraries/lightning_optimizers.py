"""What `configure_optimizers` of a LightningModule returns, in all of its documented forms."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from bsfind.errors import TargetError, UsageError
from bsfind.workload.optimizer import check_is_complete

_INTERVALS = ("epoch", "step")


def configured(
    made: Any, *, is_automatic: bool
) -> tuple[list[torch.optim.Optimizer], list[SimpleNamespace]]:
    """Return the optimizers, and the configurations of their schedulers.

    Args:
        made: what `configure_optimizers` returned.
        is_automatic: whether Lightning steps the optimizer, of which there is one then.

    Raises:
        TargetError: it is of another form.
        UsageError: one of the optimizers is LBFGS, or incomplete (see `check_is_complete`).
    """
    optimizers, schedulers = _parts_of(made)
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise UsageError(
            "LBFGS evaluates the loss several times in a step, how often depends on values",
            hint="describe one evaluation as a function: `--step pkg.mod:fn`",
        )
    for optimizer in optimizers:
        check_is_complete(optimizer)
    if is_automatic and len(optimizers) > 1:
        raise TargetError(
            f"`configure_optimizers` returned {len(optimizers)} optimizers",
            hint="Lightning steps several optimizers in `training_step` only: set "
            "`self.automatic_optimization = False` there, or pass the step: `--step pkg.mod:fn`",
        )
    return optimizers, [_scheduler_config(scheduler) for scheduler in schedulers]


def _scheduler_config(scheduler: Any) -> SimpleNamespace:
    made = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    if "scheduler" not in made:
        raise TargetError(
            '`configure_optimizers` returned a dict of a scheduler without "scheduler"'
        )
    if made.setdefault("interval", "epoch") not in _INTERVALS:
        raise TargetError(
            f"`configure_optimizers` returned a scheduler with `interval={made['interval']!r}`, not "
            '"step" or "epoch"'
        )
    return SimpleNamespace(**{"frequency": 1, "monitor": None, "name": None, **made})


def _parts_of(made: Any) -> tuple[list[torch.optim.Optimizer], list[Any]]:
    """Return optimizers and schedulers from what `configure_optimizers` returned."""
    schedulers: list[Any] = []
    if isinstance(made, (list, tuple)) and len(made) == 2 and isinstance(made[0], (list, tuple)):
        optimizers, others = list(made[0]), made[1]
        schedulers = list(others) if isinstance(others, (list, tuple)) else [others]
    else:
        optimizers = []
        for part in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(part, Mapping):
                optimizers.append(part.get("optimizer"))
                schedulers += [part["lr_scheduler"]] if part.get("lr_scheduler") is not None else []
            else:
                optimizers.append(part)
    wrong = [o for o in optimizers if not isinstance(o, torch.optim.Optimizer)]
    if wrong or not optimizers:
        raise TargetError(
            f"`configure_optimizers` returned `{type((wrong or [made])[0]).__name__}`, not an "
            "optimizer",
            hint="nothing is trained without one; return an optimizer, a list of them, or a dict with "
            '"optimizer" and "lr_scheduler"',
        )
    return optimizers, schedulers

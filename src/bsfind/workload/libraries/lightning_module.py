"""The class LightningModule of the installed Lightning, without an import of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bsfind.workload.user_errors import stands_for_torch


def lightning_class(model: object) -> type | None:
    """Return the class LightningModule (lightning.pytorch or pytorch_lightning) among a model's; or None.

    By its name: bsfind imports neither package.
    """
    for cls in type(model).__mro__:
        if cls.__name__ == "LightningModule" and "lightning" in cls.__module__.partition(".")[0]:
            return cls
    return None


def package_of(model: object) -> str:
    """Return the package that a model's LightningModule is from: `lightning.pytorch`, say."""
    cls = lightning_class(model)
    return cls.__module__.partition(".core")[0] if cls is not None else ""


def answer_by_stand_in(cls: type) -> None:
    """Replace the methods of LightningModule that reach into a Trainer's private parts."""

    def log(self: Any, name: str, value: Any, *_: Any, **__: Any) -> None:
        self.trainer.log(name, value)

    def log_dict(self: Any, dictionary: Mapping[str, Any], *_: Any, **__: Any) -> None:
        for name, value in dictionary.items():
            self.trainer.log(name, value)

    def optimizers(self: Any, use_pl_optimizer: bool = True) -> Any:
        trainer = self.trainer
        made = trainer.stepped_optimizers if use_pl_optimizer else trainer.optimizers
        return made[0] if len(made) == 1 else made

    def lr_schedulers(self: Any) -> Any:
        made = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return made[0] if len(made) == 1 else (made or None)

    @stands_for_torch
    def manual_backward(self: Any, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self.trainer.backward(loss, *args, **kwargs)

    def clip_gradients(
        self: Any,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.trainer.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def all_gather(self: Any, data: Any, *_: Any, **__: Any) -> Any:
        return data

    def print(self: Any, *args: Any, **kwargs: Any) -> None:
        self.trainer.print(*args, **kwargs)

    for function in (
        *(log, log_dict, optimizers, lr_schedulers, manual_backward, clip_gradients),
        *(all_gather, print),
    ):
        setattr(cls, function.__name__, function)

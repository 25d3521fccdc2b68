"""A stand-in for Lightning: what reaches into a Trainer fails, as in Lightning, unless it is answered."""

from typing import Any

import torch
from torch import nn


class LightningModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._trainer: Any = None
        self.automatic_optimization = True
        self.example_input_array: Any = None

    @property
    def trainer(self) -> Any:
        if self._trainer is None:
            raise RuntimeError(f"{type(self).__name__} is not attached to a `Trainer`.")
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        for child in self.children():
            if isinstance(child, LightningModule):
                child.trainer = trainer
        self._trainer = trainer

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def global_step(self) -> int:
        step: int = self.trainer.global_step
        return step

    @property
    def logger(self) -> Any:
        return self.trainer.logger

    def _needs_trainer(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("this reaches into the private parts of a Trainer")

    log = log_dict = optimizers = lr_schedulers = manual_backward = clip_gradients = _needs_trainer

    def toggle_optimizer(self, optimizer: Any) -> None:
        self._required = {
            p: p.requires_grad
            for made in self.trainer.optimizers
            for group in made.param_groups
            for p in group["params"]
        }
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for parameter, required in self._required.items():
            parameter.requires_grad = required and id(parameter) in mine

    def untoggle_optimizer(self, optimizer: Any) -> None:
        for parameter, required in self._required.items():
            parameter.requires_grad = required
        self._required = {}

    def setup(self, stage: str) -> None: ...

    def configure_model(self) -> None: ...

    def train_dataloader(self) -> Any:
        raise NotImplementedError

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        optimizer.step(closure=closure)


class LightningDataModule:
    trainer: Any = None

    def setup(self, stage: str) -> None: ...


LightningModule.__module__ = "lightning.pytorch.core.module"
LightningDataModule.__module__ = "lightning.pytorch.core.datamodule"

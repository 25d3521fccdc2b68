"""What stands in for Lightning's `Trainer` while bsfind runs the steps of a LightningModule.

Modelled on lightning.pytorch 2.0-2.6 (trainer/trainer.py, core/optimizer.py, plugins/precision/amp.py).
Neither `lightning` nor `pytorch_lightning` is imported: the user's module has imported one of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError
from bsfind.workload.libraries.lightning_module import package_of
from bsfind.workload.libraries.lightning_optimizers import configured
from bsfind.workload.precision import PrecisionPlan
from bsfind.workload.user_errors import stands_for_torch, user_line

_EPOCHS = 100
_BATCHES = 1000

_PRECISIONS = {
    "fp32": "32-true",
    "tf32": "32-true",
    "amp-fp16": "16-mixed",
    "amp-bf16": "bf16-mixed",
    "bf16": "bf16-true",
}
"""The names that Lightning gives to the precisions."""


class MissingAttributeError(TargetError, AttributeError):
    """The user's code asked for what only a real Trainer has. To `hasattr` and `getattr` it is not there."""


class _Ignoring:
    """Takes every call and attribute, and does nothing: a logger, and what hangs on one."""

    name = "bsfind"
    version = 0
    save_dir = log_dir = root_dir = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self


class _Raising:
    """Names what it lacks, and what to do, where an attribute is missing."""

    _name = ""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        line = user_line()
        raise MissingAttributeError(
            f"the code{f' in {line}' if line else ''} asks for `{self._name}.{name}`, which bsfind's "
            "stand-in for the Trainer does not have",
            hint=f"`getattr({self._name}, {name!r}, …)` gives it a value where no Trainer runs; or "
            "describe the step as a function: `--step pkg.mod:fn`, called as `fn(model, *inputs)`",
        )


class SteppedOptimizer:
    """An optimizer as `self.optimizers()` returns it: its step goes through GradScaler and the hooks.

    Args:
        optimizer: the optimizer, whose attributes and class this shows.
        trainer: takes the steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, trainer: StandInTrainer) -> None:
        self.optimizer = optimizer
        self._trainer = trainer

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.optimizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    @stands_for_torch
    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Make a step (see `StandInTrainer.step`)."""
        return self._trainer.step(self.optimizer, closure, **kwargs)

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Let only this optimizer's parameters require gradients inside."""
        self._trainer.model.toggle_optimizer(self)
        try:
            yield
        finally:
            self._trainer.model.untoggle_optimizer(self)


class _Strategy(_Raising):
    """The strategy of one device."""

    _name = "self.trainer.strategy"
    world_size = 1
    global_rank = local_rank = node_rank = 0
    is_global_zero = True

    def __init__(self, trainer: StandInTrainer) -> None:
        self.root_device = trainer.device
        self.model = self.lightning_module = trainer.model

    def barrier(self, *_: Any, **__: Any) -> None:
        """Wait for no other process."""

    def broadcast(self, value: Any, *_: Any, **__: Any) -> Any:
        """Return the value, as there is one process."""
        return value

    reduce = broadcast

    def all_gather(self, value: Any, *_: Any, **__: Any) -> Any:
        """Return what one process gathers (lightning.pytorch, `SingleDeviceStrategy.all_gather`)."""
        return value


class Fit:
    """What a trainer has of one trial. It alone holds the optimizers, and their state on the device.

    Args:
        trainer: the trainer.
        optimizers: fresh optimizers.
        schedulers: the configurations of their schedulers.
    """

    NAMES = frozenset(
        (
            *("optimizers", "stepped_optimizers", "lr_scheduler_configs", "scaler", "global_step"),
            *("callback_metrics", "logged_metrics", "progress_bar_metrics"),
        )
    )
    """The attributes that the trainer shows."""

    def __init__(
        self,
        trainer: StandInTrainer,
        optimizers: list[torch.optim.Optimizer],
        schedulers: list[SimpleNamespace],
    ) -> None:
        self.optimizers = optimizers
        self.stepped_optimizers = [SteppedOptimizer(optimizer, trainer) for optimizer in optimizers]
        self.lr_scheduler_configs = schedulers
        self.scaler = torch.amp.GradScaler(trainer.device.type, enabled=trainer.plan.grad_scaler)
        self.global_step = 0
        self.callback_metrics: dict[str, Any] = {}
        self.logged_metrics = self.progress_bar_metrics = self.callback_metrics


class StandInTrainer(_Raising):
    """Has the attributes of a `Trainer` that modules read while they train, for one process and one device.

    It is at the beginning of a training that is long: what a schedule does after its warm-up is not seen.

    Args:
        model: the LightningModule.
        plan: the precision.
        device: the device of the steps.
        accumulate: micro-batches for each optimizer step.
        datamodule: returns the LightningDataModule of the same file; None: there is none.

    Attributes:
        plan: the precision.
        device: the device of the steps.
        package: the package of LightningModule: `lightning.pytorch` or `pytorch_lightning`.
    """

    _name = "self.trainer"
    current_epoch = 0

    def __init__(
        self,
        model: nn.Module,
        plan: PrecisionPlan,
        device: torch.device,
        accumulate: int,
        datamodule: Callable[[], Any],
    ) -> None:
        self.model: Any = model
        self.lightning_module = model
        self.device = device
        self.plan = plan
        self.package = package_of(model)
        self._datamodule = datamodule
        self.accumulate_grad_batches = accumulate
        self.precision = _PRECISIONS[plan.name]
        self.logger: Any = _Ignoring()
        self.loggers = [self.logger]
        self.max_epochs, self.max_steps = _EPOCHS, _EPOCHS * _BATCHES
        self.min_epochs = self.min_steps = self.max_time = None
        self.num_training_batches = _BATCHES
        self.estimated_stepping_batches = _EPOCHS * _BATCHES // accumulate
        self.num_val_batches: list[int] = []
        self.limit_train_batches = self.limit_val_batches = self.val_check_interval = 1.0
        self.check_val_every_n_epoch = 1
        self.overfit_batches = 0.0
        self.log_every_n_steps = 50
        self.gradient_clip_val = self.gradient_clip_algorithm = None
        self.global_rank = self.local_rank = self.node_rank = 0
        self.world_size = self.num_devices = self.num_nodes = 1
        self.device_ids = [device.index or 0]
        self.is_global_zero = self.training = True
        self.validating = self.evaluating = False
        self.testing = self.predicting = self.sanity_checking = False
        self.should_stop = self.is_last_batch = self.fast_dev_run = False
        self.barebones = self.interrupted = self.received_sigterm = False
        self.state = SimpleNamespace(fn="fit", stage="train", status="running")
        self.callbacks: list[Any] = []
        self.checkpoint_callbacks: list[Any] = []
        self.checkpoint_callback = self.early_stopping_callback = self.progress_bar_callback = None
        self.train_dataloader = self.val_dataloaders = self.ckpt_path = self.log_dir = None
        self.default_root_dir = os.getcwd()  # noqa: PTH109
        self.strategy = _Strategy(self)
        self._trial: Callable[[], Fit | None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        if name in Fit.NAMES:
            return getattr(self._trial() or Fit(self, [], []), name)
        return super().__getattr__(name)

    def begin(self) -> Fit:
        """Begin a trial, which lasts as long as what is returned: the hooks before the first batch."""
        fit = Fit(self, *self.configure_optimizers())
        self._trial = weakref.ref(fit)
        for hook in ("on_fit_start", "on_train_start", "on_train_epoch_start"):
            self.call(hook)
        return fit

    @contextlib.contextmanager
    def validation(self) -> Iterator[None]:
        """Say inside that the validation of an epoch runs."""
        self.training, self.validating, self.evaluating = False, True, True
        self.state.stage = "validate"
        try:
            yield
        finally:
            self.training, self.validating, self.evaluating = True, False, False
            self.state.stage = "train"

    @stands_for_torch
    def call(self, hook: str, *args: Any) -> Any:
        """Call a hook of the module, if it has it."""
        method = getattr(self.model, hook, None)
        return method(*args) if method is not None else None

    @property
    def datamodule(self) -> Any:
        """The LightningDataModule of the module's file, set up to fit; None: there is none."""
        return self._datamodule()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context of `training_step`, as the installed Lightning makes it.

        That of lightning 2.6 keeps no casts of weights (plugins/precision/amp.py).
        """
        if self.plan.autocast_dtype is None:
            return contextlib.nullcontext()
        plugin = getattr(
            sys.modules.get(f"{self.package}.plugins.precision.amp"), "MixedPrecision", None
        )
        if plugin is None:
            return self.plan.autocast(self.device)
        scaler = self.scaler if self.plan.grad_scaler else None
        made: contextlib.AbstractContextManager[Any] = plugin(
            precision=self.precision, device=self.device.type, scaler=scaler
        ).autocast_context_manager()
        return made

    # ------------------------------------------------------------------------------ optimizers

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[SimpleNamespace]]:
        """Return fresh optimizers, and the configurations of their schedulers.

        Nothing but the user's code steps the schedulers: the learning rate takes no memory.
        """
        return configured(
            self.call("configure_optimizers"), is_automatic=self.model.automatic_optimization
        )

    @stands_for_torch
    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Run a backward pass of the scaled loss, with the hooks around it."""
        loss = self.scaler.scale(loss)
        self.call("on_before_backward", loss)
        own = getattr(self.model, "backward", None)
        if own is None:
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        else:
            own(loss, *args, **kwargs)
        self.call("on_after_backward")

    @stands_for_torch
    def step(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None, **kwargs: Any
    ) -> Any:
        """Make a step as Lightning's precision plugins do: unscaled, with hooks, clipped."""
        is_automatic = self.model.automatic_optimization

        def closed() -> Any:
            result = closure() if closure is not None else None
            is_skipped = result is None and is_automatic
            handles = getattr(optimizer, "_step_supports_amp_scaling", False)
            if self.scaler.is_enabled() and not handles and not is_skipped:
                self.scaler.unscale_(optimizer)
            self.call("on_before_optimizer_step", optimizer)
            if is_automatic:
                self.call("configure_gradient_clipping", optimizer, None, None)
            return result

        if self.scaler.is_enabled():
            result = closed()
            if result is not None or not is_automatic:
                self.scaler.step(optimizer, **kwargs)
                self.scaler.update()
        elif type(optimizer).__module__.startswith("torch.optim"):
            result = closed()  # first, as these would; outside of the step, it is not theirs
            optimizer.step(**kwargs)
        else:
            result = optimizer.step(closure=closed, **kwargs)
        if (fit := self._trial()) is not None:
            fit.global_step += 1
        return result

    def clip_gradients(
        self, optimizer: Any, gradient_clip_val: float | None, algorithm: str | None
    ) -> None:
        """Clip the gradients of an optimizer's parameters."""
        if not gradient_clip_val:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if str(getattr(algorithm, "value", algorithm)) == "value":
            nn.utils.clip_grad_value_(parameters, clip_value=gradient_clip_val)
        else:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def log(self, name: str, value: Any) -> None:
        """Keep a logged value as long as Lightning's results do; metrics keep their own state."""
        if isinstance(value, torch.Tensor):
            self.callback_metrics[name] = value.detach().clone()
        elif not isinstance(value, nn.Module):
            self.callback_metrics[name] = value

    def print(self, *args: Any, **_: Any) -> None:
        """Print for the module, on stderr."""
        sys.stderr.write(f"{' '.join(map(str, args))}\n")

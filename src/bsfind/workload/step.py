"""The reference training step: what is measured, simulated and compared everywhere.

    inputs (and targets) allocated on the device
    optimizer.zero_grad(set_to_none=True)
    with autocast(dtype) if amp:  loss = loss_of(model(*args, **kwargs))
    scaler.scale(loss).backward();  scaler.step(optimizer);  scaler.update()
    loss, outputs, inputs released

Lifetimes matter here: a reference that is kept too long is memory that training does not use.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError
from bsfind.import_path import resolve_function
from bsfind.records import Assumption, OutputMemory
from bsfind.settings import Workload
from bsfind.workload.inputs import Batch, batch_maker
from bsfind.workload.loss import Loss, LossOfTerms, lightning_loss, make_loss
from bsfind.workload.loss_choice import LossChoice
from bsfind.workload.model import (
    DATA_PARALLEL_NOTE,
    build_model,
    enable_checkpointing,
    in_channels_last,
    initialize_lazy_layers,
    is_lightning_module,
    keyword_arguments,
    on_one_device,
    watching_batch_dimension,
    weights_dtype,
)
from bsfind.workload.optimizer import configured_optimizer, make_optimizer
from bsfind.workload.outputs import nbytes_of
from bsfind.workload.precision import PrecisionPlan
from bsfind.workload.user_errors import stands_for_torch

_SMALL_BATCH = 2
"""Samples of the forward pass that tries labels; batch normalisation needs two."""

_MAX_FURTHER_STEPS = 24
"""GradScaler starts at 2**16 and halves at every skipped step: after these the scale is below one."""


_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class LoadedWorkload:
    """The user's model on a device, with all that its steps need but an optimizer.

    Args:
        workload: what to train.
        plan: the precision.
        device: the device of the model and the batches.
        model: the model; None: it is built from the workload's target.
        choice: the loss that was chosen for the same model before; None: it is not chosen yet.

    Attributes:
        model: the module on the device (before torch.compile).
        choice: the choice of the loss, with `--loss auto`.
        last_batch: the last batch as text, for error messages.
        notes: messages for the reader of the report, by code.
        weights_dtype: see `records.PrecisionResult`.

    Raises:
        TargetError: something that the workload names does not exist or does not work.
        Exception: whatever the user's code raises.
    """

    def __init__(
        self,
        workload: Workload,
        plan: PrecisionPlan,
        device: torch.device,
        model: nn.Module | None = None,
        choice: LossChoice | None = None,
    ) -> None:
        self.workload = workload
        self.plan = plan
        self.device = device
        self.last_batch: str | None = None
        self.notes: dict[str, str] = {}
        plan.set_matmul_precision()
        if model is None:
            model = build_model(workload.target, keyword_arguments(workload.model_args))
        # A step function of the user may use `model.module`.
        model, was_wrapped = on_one_device(model, unwrap=workload.step is None)
        if was_wrapped:
            self.notes["data_parallel"] = DATA_PARALLEL_NOTE
        self._step_fn = resolve_function(workload.step) if workload.step is not None else None
        run = functools.partial(self._step_fn, model) if self._step_fn is not None else model
        initialize_lazy_layers(
            model,
            run,
            lambda size: batch_maker(
                *(workload.inputs, workload.batch_fn),
                device=torch.device("cpu"),
                float_dtype=None,
                channels_last=False,
            )(size),
        )
        if workload.grad_checkpoint:
            enable_checkpointing(model)
        if workload.channels_last:
            model = in_channels_last(model)
        self.model: nn.Module = model.to(device=device, dtype=plan.model_dtype)
        self.weights_dtype = None if plan.model_dtype else weights_dtype(self.model)
        self.model.train(workload.mode == "train")
        self._callable: Callable[..., Any] = self.model
        if workload.compile:
            self._callable = torch.compile(self.model)
        self._optimizer_args = keyword_arguments(workload.optimizer_args)
        self._make_batch = batch_maker(
            workload.inputs,
            workload.batch_fn,
            device=device,
            float_dtype=plan.model_dtype,
            channels_last=workload.channels_last,
        )
        self.choice = choice or LossChoice(device, plan.model_dtype)
        self._output_bytes = 0

    @property
    def trains_itself(self) -> bool:
        """Whether the model brings its own training step and optimizer (LightningModule)."""
        return (
            self.workload.mode == "train"
            and self._step_fn is None
            and is_lightning_module(self.model)
        )

    def parameter_count(self) -> int:
        """Return the number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def has_convolutions(self) -> bool:
        """Whether the model has modules that convolve."""
        return any(isinstance(module, _CONVOLUTIONS) for module in self.model.modules())

    def make_batch(self, batch_size: int) -> Batch:
        """Return a batch on the device."""
        batch = self.choice.with_labels(self._make_batch(batch_size))
        self.last_batch = batch.describe()
        return batch

    @property
    def _chooses_loss(self) -> bool:
        return (
            self.workload.mode == "train"
            and self.workload.loss == "auto"
            and self._step_fn is None
            and not self.trains_itself
        )

    def try_labels(self, batch_size: int) -> bool:
        """Find out, once, whether the model computes its loss from labels that were not given.

        Runs forward passes of small batches, of which nothing is kept. A model that does not run at
        these is tried at the given batch size.

        Returns:
            Whether forward passes ran.

        Raises:
            Exception: what the model raises without labels.
        """
        specs = self.workload.inputs
        keywords = [spec.name for spec in specs if spec.name is not None]
        positional = len(specs) - len(keywords)
        if not self._chooses_loss or not self.choice.needs_a_try(self.model, positional, keywords):
            return False
        for size in dict.fromkeys((min(_SMALL_BATCH, batch_size), batch_size)):
            batch = self._make_batch(size)
            self.last_batch = batch.describe()
            try:
                self.choice.try_labels(self.model, self._forward, batch)
            except Exception:
                if size == batch_size:
                    raise
            else:
                break
        return True

    @stands_for_torch
    def _forward(self, batch: Batch) -> Any:
        with self.plan.autocast(self.device):
            return self.model(*batch.args, **batch.kwargs)

    @property
    def assumptions(self) -> list[Assumption]:
        """What was chosen for the steps so far."""
        if self.trains_itself:
            why = "a LightningModule brings its own"
            return [
                Assumption(what="loss", value="the module's training_step", why=why),
                Assumption(what="optimizer", value="the module's configure_optimizers", why=why),
            ]
        chosen = self.choice.assumption
        return [chosen] if chosen is not None else []

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return a fresh optimizer, without state of an earlier trial."""
        if self.trains_itself:
            return configured_optimizer(self.model)
        return make_optimizer(self.workload.optimizer, self._optimizer_args, self.model)

    def make_loss(self) -> Loss:
        """Return the loss between the model's output and the (synthetic) targets."""
        if self.workload.loss == "auto":
            return LossOfTerms(functools.partial(self.choice.terms_of, self.model))
        return make_loss(self.workload.loss)

    @stands_for_torch
    def loss_of(self, batch: Batch, loss: Loss) -> torch.Tensor:
        """Run the forward pass and the loss, inside autocast if the precision has it.

        Raises:
            TargetError: the result is not a scalar that can be differentiated.
        """
        with self.plan.autocast(self.device):
            if self._step_fn is not None:
                value = self._step_fn(self._callable, *batch.args, **batch.kwargs)
            elif self.trains_itself:
                value = lightning_loss(self._callable, batch)
            else:
                value = loss(self._noted(self._callable(*batch.args, **batch.kwargs), batch), batch)
        return _checked_loss(value)

    def _noted(self, output: Any, batch: Batch) -> Any:
        """Return the output; note its memory."""
        samples = next((x.shape[0] for x in batch.tensors() if x.dim()), 1)
        self._output_bytes = max(self._output_bytes, nbytes_of(output) // max(1, samples))
        return output

    @property
    def output(self) -> OutputMemory | None:
        """The memory of the output; None where bsfind does not make the loss."""
        if not self._output_bytes:
            return None
        return OutputMemory(
            bytes_per_sample=self._output_bytes, is_stand_in=self.choice.is_stand_in
        )

    @stands_for_torch
    def infer(self, batch: Batch) -> Any:
        """Run the forward pass alone and return the output."""
        with self.plan.autocast(self.device):
            return self._callable(*batch.args, **batch.kwargs)

    def watching_batch_dimension(self, batch_size: int) -> AbstractContextManager[None]:
        """Return a context that notes layers which take the batch dimension for the sequence."""
        if self.workload.compile:
            return contextlib.nullcontext()
        note = functools.partial(self.notes.setdefault, "batch_dimension")
        return watching_batch_dimension(self.model, batch_size, note)

    def clear_gradients(self) -> None:
        """Release the gradients of the last step."""
        for parameter in self.model.parameters():
            parameter.grad = None


def _checked_loss(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TargetError(f"the loss is of type `{type(value).__name__}`, not a tensor")
    if value.numel() != 1:
        raise TargetError(f"the loss has shape {list(value.shape)}, not one value")
    if not value.requires_grad:
        raise TargetError(
            "the loss does not depend on any parameter that requires a gradient",
            hint="does the model run under torch.no_grad(), or detach its output?",
        )
    return value


class TrainingSteps:
    """Runs the steps of one trial, with a fresh optimizer and scaler.

    Args:
        loaded: the model and what belongs to it.
        on_forward_done: called at the end of each forward pass, while the memory that it leaves for
            the backward pass is allocated.
        making_inputs: a context that is entered to make each batch and its targets.

    Attributes:
        completed: optimizer steps that ran. A GradScaler skips those whose gradients overflow, and
            these do not create the optimizer's state: they do not count.
        attempts: optimizer steps that ran or were skipped.
        is_warm_up: whether the last step was unlike the next: it was the first, it was skipped, or
            some parameter had its first gradient in it (and its first state of the optimizer).
        gradient_bytes: bytes of the gradients after the last step.
    """

    def __init__(
        self,
        loaded: LoadedWorkload,
        on_forward_done: Callable[[], None],
        making_inputs: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._loaded = loaded
        self._on_forward_done = on_forward_done
        self._making_inputs = making_inputs
        self.completed = 0
        self.attempts = 0
        self.is_warm_up = True
        self.gradient_bytes = 0
        self._last_warm_up = 0
        self._updated: set[int] = set()
        self._training = loaded.workload.mode == "train"
        if self._training:
            self._loss = loaded.make_loss()
            self._optimizer = loaded.make_optimizer()
            self._scaler = torch.amp.GradScaler(loaded.device.type, enabled=loaded.plan.grad_scaler)
            self._has_stepped = False
            self._optimizer.register_step_post_hook(self._note_step)

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The targets of the current batch that the loss has allocated."""
        return self._loss.targets if self._training else ()

    def _note_step(self, *_: object) -> None:
        # A class whose `step` calls its parent's runs this hook twice in a step.
        self._has_stepped = True

    def run(self, batch_size: int) -> None:
        """Run one optimizer step (`grad_accum` micro-batches), or one forward pass.

        Raises:
            Exception: out of memory, or whatever the user's code raises.
        """
        before = self.completed
        with contextlib.ExitStack() as watch:
            if self.attempts == 0:
                watch.enter_context(self._loaded.watching_batch_dimension(batch_size))
            if self._training:
                self._train(batch_size)
            else:
                self._infer(batch_size)
        self.attempts += 1
        has_new = self._training and self._look_at_gradients()
        self.is_warm_up = self.attempts == 1 or has_new or self.completed == before
        if self.is_warm_up:
            self._last_warm_up = self.attempts

    def wants_more(self, steps: int) -> bool:
        """Tell whether a trial of `steps` optimizer steps goes on.

        It runs two more steps if a parameter had its first gradient late: the step after that is the
        first with all of the optimizer's state.
        """
        if self.attempts >= steps + _MAX_FURTHER_STEPS:
            return False
        settled = self.attempts - self._last_warm_up
        return self.completed < steps or settled < min(2, steps - 1)

    def _look_at_gradients(self) -> bool:
        """Count the bytes of the gradients; tell whether a parameter has its first gradient."""
        known = len(self._updated)
        self._updated.update(id(parameter) for parameter in self._optimizer.state)
        storages: dict[int, int] = {}
        for parameter in self._loaded.model.parameters():
            gradient = parameter.grad
            if gradient is None:
                continue
            self._updated.add(id(parameter))
            if gradient.layout == torch.strided:
                storage = gradient.untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        self.gradient_bytes = sum(storages.values())
        return len(self._updated) > known

    def _train(self, batch_size: int) -> None:
        loaded, loss = self._loaded, self._loss
        micro_batches = loaded.workload.grad_accum
        for micro_batch in range(micro_batches):
            with self._making_inputs():
                batch = loaded.make_batch(batch_size)
                loss.make_targets()
            if micro_batch == 0:
                self._optimizer.zero_grad(set_to_none=True)
            value = loaded.loss_of(batch, loss)
            self._on_forward_done()
            if micro_batches > 1:
                value = value / micro_batches
            self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]
            if micro_batch == micro_batches - 1:
                self._has_stepped = False
                self._scaler.step(self._optimizer)
                self.completed += self._has_stepped
                self._scaler.update()
            del value, batch
            loss.release_targets()

    def _infer(self, batch_size: int) -> None:
        with torch.inference_mode():
            with self._making_inputs():
                batch = self._loaded.make_batch(batch_size)
            output = self._loaded.infer(batch)
            self._on_forward_done()
            del output, batch
        self.completed += 1

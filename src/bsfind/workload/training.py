"""The reference training step: what is measured, simulated and compared everywhere.

    inputs (and targets) allocated on the device
    optimizer.zero_grad(set_to_none=True)
    with autocast(dtype) if amp:  loss = loss_of(model(*args, **kwargs))
    scaler.scale(loss).backward();  scaler.step(optimizer);  scaler.update()
    loss, outputs, inputs released

A function of the user's may make the step itself (`--step`), as may a LightningModule
(`libraries/lightning.py`). Lifetimes matter here: a reference that is kept too long is memory that training
does not use.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from bsfind.errors import TargetError
from bsfind.workload.evaluation import BATCHES, evaluating
from bsfind.workload.outputs import local_part
from bsfind.workload.user_errors import stands_for_torch
from bsfind.workload.variation import FEWEST_STEPS

if TYPE_CHECKING:
    from bsfind.workload.step import LoadedWorkload

_MAX_FURTHER_STEPS = 24
"""GradScaler starts at 2**16 and halves at every skipped step: after these the scale is below one."""

MakingInputs = Callable[[], AbstractContextManager[None]]
"""Returns a context that is entered to make each batch and its targets."""


class Training(Protocol):
    """Trains in the steps of one trial."""

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The targets of the current batch that bsfind's loss has allocated."""
        ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers of the steps so far."""
        ...

    def step(self, batch_size: int) -> bool:
        """Run one step; tell whether an optimizer updated parameters in it.

        Args:
            batch_size: samples in a (micro-)batch.

        Raises:
            Exception: out of memory, or whatever the user's code raises.
        """
        ...

    def evaluate(self, batch_size: int) -> None:
        """Run an evaluation pass, with batches of this size.

        Raises:
            Exception: as `step` does.
        """
        ...

    def end_epoch(self) -> int | None:
        """End the epoch; return how many batches it is taken to have, None if the steps have no epochs.

        Raises:
            Exception: as `step` does.
        """
        ...


@contextlib.contextmanager
def noting_steps() -> Iterator[list[torch.optim.Optimizer]]:
    """Give the list of the optimizers that have stepped inside, whoever made them.

    A GradScaler does not call the optimizer whose gradients are not finite. Each optimizer is in the list
    once, though a class whose `step` calls its parent's runs the hook twice
    (torch/optim/optimizer.py, torch 2.6-2.13).
    """
    stepped: list[torch.optim.Optimizer] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if optimizer not in stepped:
            stepped.append(optimizer)

    handle = register_optimizer_step_post_hook(note)
    try:
        yield stepped
    finally:
        handle.remove()


@contextlib.contextmanager
def before_each_backward(announce: Callable[[], None]) -> Iterator[None]:
    """Call a function before each backward pass that the user's code starts inside."""
    own = torch.autograd.backward

    @functools.wraps(own)
    @stands_for_torch
    def backward(*args: Any, **kwargs: Any) -> None:
        announce()
        own(*args, **kwargs)

    torch.autograd.backward = backward
    try:
        yield
    finally:
        torch.autograd.backward = own


class ReferenceTraining:
    """The reference step of the README, with a fresh optimizer and scaler.

    A function of the user's that returns no loss has stepped its own optimizers: then bsfind's is left out,
    and clears no gradients.

    Args:
        loaded: the model and what belongs to it.
        making_inputs: see `MakingInputs`.
        on_forward_done: called at the end of each forward pass.
    """

    def __init__(
        self,
        loaded: LoadedWorkload,
        making_inputs: MakingInputs,
        on_forward_done: Callable[[], None],
    ) -> None:
        self._loaded = loaded
        self._making_inputs = making_inputs
        self._on_forward_done = on_forward_done
        self._loss = loaded.make_loss()
        (self._optimizer,) = loaded.make_optimizers()
        self._scaler = torch.amp.GradScaler(loaded.device.type, enabled=loaded.plan.grad_scaler)
        self._own_optimizers: list[torch.optim.Optimizer] = []
        self._batch_size = 0

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The targets of the current batch (see `Training.targets`)."""
        return self._loss.targets

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizer that bsfind has made, or those of the user's function."""
        return self._own_optimizers or [self._optimizer]

    def step(self, batch_size: int) -> bool:
        """Run `grad_accum` micro-batches (see `Training.step`)."""
        with noting_steps() as stepped:
            for micro_batch in range(self._loaded.workload.grad_accum):
                with self._loaded.accumulating(micro_batch):
                    self._run(batch_size, micro_batch, stepped)
        return any(optimizer in stepped for optimizer in self.optimizers)

    def evaluate(self, batch_size: int) -> None:
        """Run the forward pass and the loss of some batches (see `Training.evaluate`).

        The gradients of the last step are cleared before, as the Trainer of transformers does.
        """
        loaded, loss = self._loaded, self._loss
        if loaded.own_optimizers:
            raise TargetError(
                f"`--step {loaded.workload.step}` steps its own optimizers: it cannot evaluate",
                hint="leave `--with-eval` out, or return the loss instead of stepping",
            )
        self._optimizer.zero_grad(set_to_none=True)
        with evaluating(loaded.model):
            for _ in range(BATCHES):
                with self._making_inputs():
                    batch = loaded.make_evaluation_batch(batch_size)
                    if batch_size == self._batch_size:
                        loss.make_targets()
                loaded.evaluate(batch, loss)
                del batch
                self._batch_size = batch_size  # that of the targets which are known
                loss.release_targets()

    def end_epoch(self) -> None:
        """Do nothing: a step knows of no epochs (see `Training.end_epoch`)."""

    def _run(self, batch_size: int, micro_batch: int, stepped: list[torch.optim.Optimizer]) -> None:
        loaded, loss = self._loaded, self._loss
        self._batch_size = batch_size
        micro_batches = loaded.workload.grad_accum
        with self._making_inputs():
            batch = loaded.make_batch(batch_size)
            loss.make_targets()
        if micro_batch == 0 and not loaded.own_optimizers:
            self._optimizer.zero_grad(set_to_none=True)
        with before_each_backward(self._on_forward_done):
            value = loaded.loss_of(batch, loss)
        if value is None and loaded.functions:
            self._note_own(stepped)
            return
        value = _checked_loss(value)
        if value.device.type == "cpu":
            _check_is_on_device(loaded)
        self._on_forward_done()
        if micro_batches > 1:
            value = value / micro_batches
        self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        if micro_batch == micro_batches - 1:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        del value, batch
        loss.release_targets()

    def _note_own(self, stepped: list[torch.optim.Optimizer]) -> None:
        """Note the optimizers that the user's function has stepped.

        Raises:
            TargetError: there are none, or they do not train the model, or micro-batches are accumulated.
        """
        loaded = self._loaded
        step = f"`--step {loaded.workload.step}`"
        if not stepped:
            raise TargetError(
                f"{step} returned None, and no optimizer made a step in it",
                hint="return the loss, or call `step()` of the optimizers in the function",
            )
        if loaded.workload.grad_accum > 1:
            raise TargetError(
                f"{step} steps its own optimizers: `--grad-accum` has no meaning",
                hint="leave `--grad-accum` out, or return the loss instead of stepping",
            )
        trained = {id(parameter) for parameter in loaded.model.parameters()}
        if not any(
            id(parameter) in trained
            for optimizer in stepped
            for group in optimizer.param_groups
            for parameter in group["params"]
        ):
            raise TargetError(
                f"the optimizers that {step} stepped hold no parameter of the model it was called with",
                hint="make them from that model, at the function's first call: "
                "`if not hasattr(model, 'optimizer'): model.optimizer = …`",
            )
        _check_is_on_device(loaded)
        known = self._own_optimizers
        known += [optimizer for optimizer in stepped if optimizer not in known]
        loaded.own_optimizers = [type(optimizer).__name__ for optimizer in self._own_optimizers]


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


def _check_is_on_device(loaded: LoadedWorkload) -> None:
    """Make sure that the step has not moved the model to the CPU, where it takes no memory of the GPU.

    Raises:
        TargetError: it has.
    """
    places = {parameter.device.type for parameter in loaded.model.parameters()}
    if places == {"cpu"} and loaded.device.type != "cpu":
        raise TargetError(
            "the step moved the model to the CPU and trained it there",
            hint='bsfind has moved the model to the GPU: leave `.to("cpu")` out; or is a variable such as '
            '`device` "cpu"?',
        )


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
        self._process = os.getpid()
        loaded.deliveries.begin()
        loaded.variation.begin()
        self._training: Training | None = None
        if loaded.workload.mode == "train":
            self._training = loaded.make_training(making_inputs, on_forward_done)

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The targets of the current batch that the loss has allocated."""
        return self._training.targets if self._training is not None else ()

    def run(self, batch_size: int) -> None:
        """Run one optimizer step (`grad_accum` micro-batches), or one forward pass.

        Raises:
            Exception: out of memory, or whatever the user's code raises.
        """
        before = self.completed
        with contextlib.ExitStack() as watch:
            if self.attempts == 0:
                watch.enter_context(self._loaded.watching_batch_dimension(batch_size))
            if self._training is not None:
                self.completed += self._training.step(batch_size)
            else:
                self._infer(batch_size)
        if os.getpid() != self._process:
            os._exit(0)  # a copy that the user's code has forked: each step would double them
        self.attempts += 1
        if self.attempts == 1:
            self._loaded.variation.first_step_is_over()
        has_new = self._training is not None and self._look_at_gradients(self._training.optimizers)
        self.is_warm_up = self.attempts == 1 or has_new or self.completed == before
        if self.is_warm_up:
            self._last_warm_up = self.attempts

    def evaluate(self, batch_size: int) -> None:
        """Run the evaluation pass after the steps, with batches of this size.

        Raises:
            Exception: out of memory, or whatever the user's code raises.
        """
        assert self._training is not None
        self._training.evaluate(batch_size)

    def end_epoch(self) -> int | None:
        """End the epoch after the steps (see `Training.end_epoch`).

        Raises:
            Exception: out of memory, or whatever the user's code raises.
        """
        return self._training.end_epoch() if self._training is not None else None

    def wants_more(self, steps: int, *, is_long: bool = False) -> bool:
        """Tell whether a trial of `steps` optimizer steps goes on.

        It runs two more steps if a parameter had its first gradient late: the step after that is the
        first with all of the optimizer's state. It has more steps where batches vary, unless each
        takes long.
        """
        if self._loaded.variation.is_there and not is_long:
            steps = max(steps, FEWEST_STEPS)
        if self.attempts >= steps + _MAX_FURTHER_STEPS:
            return False
        settled = self.attempts - self._last_warm_up
        return self.completed < steps or settled < min(2, steps - 1)

    def check_completed(self) -> None:
        """Raise a `TargetError` if no step has updated parameters."""
        if self.completed:
            return
        if self._loaded.plan.grad_scaler:
            raise TargetError(
                f"GradScaler skipped all of {self.attempts} steps: the gradients are never finite",
                hint="float16 overflows in this model; try `--precision amp-bf16`",
            )
        raise TargetError(f"no optimizer updated parameters in {self.attempts} steps")

    def _look_at_gradients(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        """Count the bytes of the gradients; tell whether a parameter has its first gradient."""
        known = len(self._updated)
        self._updated.update(id(parameter) for made in optimizers for parameter in made.state)
        storages: dict[int, int] = {}
        for parameter in self._loaded.model.parameters():
            gradient = parameter.grad
            if gradient is None:
                continue
            self._updated.add(id(parameter))
            if gradient.layout == torch.strided:
                storage = local_part(gradient).untyped_storage()
                storages[storage._cdata] = storage.nbytes()
        self.gradient_bytes = sum(storages.values())
        return len(self._updated) > known

    def _infer(self, batch_size: int) -> None:
        with torch.inference_mode():
            with self._making_inputs():
                batch = self._loaded.make_batch(batch_size)
            output = self._loaded.infer(batch)
            self._on_forward_done()
            del output, batch
        self.completed += 1

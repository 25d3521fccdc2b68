"""LightningModules: prepared as a Trainer would, and trained by their own `training_step` and optimizers.

Modelled on lightning.pytorch 2.0-2.6 (loops/optimization/automatic.py and manual.py,
loops/training_epoch_loop.py): the forward pass runs while the last step's gradients are still allocated,
and the batch and what `training_step` returned are kept until `on_train_batch_end`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from bsfind.errors import BsfindError, TargetError, UsageError
from bsfind.records import Assumption
from bsfind.settings import Workload
from bsfind.workload.evaluation import BATCHES, evaluating
from bsfind.workload.inputs import Batch, BatchForm
from bsfind.workload.libraries.lightning_data import LightningData, form_of_batch
from bsfind.workload.libraries.lightning_module import answer_by_stand_in, lightning_class
from bsfind.workload.libraries.lightning_trainer import StandInTrainer
from bsfind.workload.precision import PrecisionPlan
from bsfind.workload.training import MakingInputs, before_each_backward, noting_steps
from bsfind.workload.user_errors import stands_for_torch, text_of

_AT_THE_END = "on_train_epoch_end"
"""The hook in which modules free what `training_step` has collected."""

_MOST_WITHOUT_LOSS = 8
"""Steps of which `training_step` may return None, to skip them."""


class Lightning:
    """A LightningModule with what stands in for its Trainer.

    Args:
        workload: what to train.
        model: the module, not on its device yet.
        plan: the precision.
        device: the device of the steps.

    Attributes:
        trainer: the stand-in.
        data: the module's data loaders.
        notes: messages for the reader of the report, by code.
    """

    def __init__(
        self, workload: Workload, model: Any, plan: PrecisionPlan, device: torch.device
    ) -> None:
        cls = lightning_class(model)
        assert cls is not None
        answer_by_stand_in(cls)
        self._model = model
        self._is_described = workload.batch_fn is None
        self.notes: dict[str, str] = {}
        self.data = LightningData(workload.target, model)
        self.trainer = StandInTrainer(
            *(model, plan, device, workload.grad_accum), lambda: self.data.datamodule
        )
        self._model.trainer = self.trainer
        has_own = getattr(type(model), "validation_step", None) is not getattr(
            cls, "validation_step", None
        )
        if workload.with_eval and not has_own:
            raise UsageError(
                f"`--with-eval`: `{type(model).__name__}` has no `validation_step`, and a Trainer evaluates "
                "nothing"
            )
        self._set_up()
        self.trainer.call("configure_model")
        self._model.trainer = self.trainer  # that of modules which were made meanwhile
        if workload.compile:
            self._model.training_step = torch.compile(self._model.training_step)

    def _set_up(self) -> None:
        """Call `setup`, which often opens data that are not here."""
        try:
            if hasattr(self._model, "setup"):
                self._model.setup(stage="fit")
        except BsfindError:
            raise
        except Exception as error:
            self.notes["lightning_setup"] = (
                f"`{type(self._model).__name__}.setup` failed, and the steps run without what it would have "
                f"made: {text_of(error)}"
            )

    @property
    def keeps_modes(self) -> bool:
        """Whether modules that the user has set to `eval()` stay so (lightning 2.2 and later)."""
        package = sys.modules.get(self.trainer.package.partition(".")[0])
        major, minor = getattr(package, "__version__", "2.2").split(".")[:2]
        return (int(major), int(minor)) >= (2, 2)

    def form_of_batch(self) -> BatchForm:
        """Return how `training_step` takes its batch: runs it up to there, in a trial of its own."""
        fit = self.trainer.begin()
        form = form_of_batch(lambda batch: self.training_step(batch, 0))
        del fit
        return form

    @stands_for_torch
    def training_step(self, batch: Any, index: int) -> Any:
        """Call `training_step` with the arguments that it takes."""
        return _call_step(self._model.training_step, batch, index)

    @stands_for_torch
    def validation_step(self, batch: Any, index: int) -> Any:
        """Call `validation_step` with the arguments that it takes."""
        return _call_step(self._model.validation_step, batch, index)

    def loader_batch(self, batch: Batch, form: BatchForm | None) -> Any:
        """Return a batch as a data loader would pass it, after the hooks for batches.

        Args:
            batch: the inputs.
            form: how `training_step` takes its batch; None: unknown.

        Raises:
            TargetError: it does not fit how `training_step` takes it.
        """
        made = (form or BatchForm()).of(batch, is_described=self._is_described)
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            if hasattr(self._model, hook):
                made = self.trainer.call(hook, made, 0)
        return made

    def assumptions_with(self, optimizers: str) -> list[Assumption]:
        """Return what is trained, with optimizers of these classes."""
        why = "a LightningModule brings its own"
        trainer = self.trainer
        return [
            Assumption(what="loss", value="the module's training_step", why=why),
            Assumption(what="optimizer", value=optimizers, why=why),
            Assumption(
                what="Trainer",
                value=f"{trainer.max_epochs} epochs of {trainer.num_training_batches:,} batches",
                why="no Trainer runs; without gradient clipping, callbacks and a logger",
            ),
        ]


@stands_for_torch
def _call_step(step: Callable[..., Any], batch: Any, index: int) -> Any:
    names = list(inspect.signature(step).parameters)
    if names[:1] == ["dataloader_iter"]:
        return step(iter([(batch, index, 0)]))
    takes_index = "batch_idx" in names or len(names) >= 2
    return step(*((batch, index) if takes_index else (batch,)))


class LightningTraining:
    """Trains in the steps of one trial as Lightning's loops do.

    Args:
        lightning: the module and its trainer.
        make_batch: makes a batch as a data loader would pass it.
        make_evaluation_batch: makes one of the evaluation pass.
        making_inputs: returns a context that is entered to make each batch.
        on_forward_done: called at the end of each forward pass.
        watching_calls: returns a context that `training_step` runs in.
    """

    targets: Sequence[torch.Tensor] = ()

    def __init__(
        self,
        lightning: Lightning,
        *,
        make_batch: Callable[[int], Any],
        make_evaluation_batch: Callable[[int], Any],
        making_inputs: MakingInputs,
        on_forward_done: Callable[[], None],
        watching_calls: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._lightning = lightning
        self._trainer = lightning.trainer
        self._make_batch = make_batch
        self._make_evaluation_batch = make_evaluation_batch
        self._making_inputs = making_inputs
        self._on_forward_done = on_forward_done
        self._watching_calls = watching_calls
        self._fit = self._trainer.begin()
        self._batches = 0
        self._without_loss = 0

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The optimizers that the module has configured."""
        return self._fit.optimizers

    def step(self, batch_size: int) -> bool:
        """Run the batches of one optimizer step (see `training.Training.step`)."""
        with noting_steps() as stepped:
            for micro_batch in range(self._trainer.accumulate_grad_batches):
                self._run(batch_size, micro_batch)
        return bool(stepped) and not self._without_loss

    def _run(self, batch_size: int, micro_batch: int) -> None:
        trainer, index = self._trainer, self._batches
        with self._making_inputs():
            batch = self._make_batch(batch_size)
        trainer.call("on_train_batch_start", batch, index)
        if trainer.model.automatic_optimization:
            outputs = self._run_automatic(batch, micro_batch)
        else:
            outputs = self._run_manual(batch)
        trainer.call("on_train_batch_end", outputs, batch, index)
        self._batches += 1

    def evaluate(self, batch_size: int) -> None:
        """Run `validation_step` on some batches (see `training.Training.evaluate`).

        Lightning clears gradients in the next step: those of the last are allocated meanwhile
        (loops/evaluation_loop.py).
        """
        trainer = self._trainer
        with trainer.validation(), evaluating(trainer.model):
            trainer.call("on_validation_start")
            trainer.call("on_validation_epoch_start")
            for index in range(BATCHES):
                with self._making_inputs():
                    batch = self._make_evaluation_batch(batch_size)
                trainer.call("on_validation_batch_start", batch, index)
                outputs = self._validation_step(batch, index)
                trainer.call("on_validation_batch_end", outputs, batch, index)
                del outputs, batch
            trainer.call("on_validation_epoch_end")
            trainer.call("on_validation_end")

    def end_epoch(self) -> int | None:
        """Call `on_train_epoch_end`, where the module has it (see `training.Training.end_epoch`)."""
        model = self._trainer.model
        own = getattr(type(model), _AT_THE_END, None)
        if own is getattr(lightning_class(model), _AT_THE_END, None):
            return None
        self._trainer.call(_AT_THE_END)
        return self._trainer.num_training_batches

    @stands_for_torch
    def _validation_step(self, batch: Any, index: int) -> Any:
        with self._trainer.autocast():
            return self._lightning.validation_step(batch, index)

    @stands_for_torch
    def _training_step(self, batch: Any) -> Any:
        with self._trainer.autocast(), self._watching_calls():
            return self._lightning.training_step(batch, self._batches)

    def _run_automatic(self, batch: Any, micro_batch: int) -> dict[str, Any]:
        """Run forward pass, zero_grad, backward pass and optimizer step, in this order."""
        trainer = self._trainer
        optimizer = self._fit.stepped_optimizers[0]
        accumulate = trainer.accumulate_grad_batches
        outputs: dict[str, Any] = {}

        @torch.enable_grad()
        def closure() -> torch.Tensor | None:
            loss, others = _parts_of(self._training_step(batch))
            self._count(loss)
            copy = None
            if loss is not None:
                loss = loss / accumulate
                copy = loss.detach().clone()
                outputs.update(loss=copy, **others)
            self._on_forward_done()
            if micro_batch == 0:
                self._clear_gradients(optimizer.optimizer)
            if loss is not None:
                trainer.backward(loss)
            return copy

        if micro_batch < accumulate - 1:
            closure()
            return outputs
        if hasattr(trainer.model, "optimizer_step"):
            trainer.call("optimizer_step", trainer.current_epoch, self._batches, optimizer, closure)
        else:
            optimizer.step(closure)
        return outputs

    def _clear_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        trainer = self._trainer
        trainer.call("on_before_zero_grad", optimizer)
        if hasattr(trainer.model, "optimizer_zero_grad"):
            trainer.call("optimizer_zero_grad", trainer.current_epoch, self._batches, optimizer)
        else:
            optimizer.zero_grad()

    def _count(self, loss: torch.Tensor | None) -> None:
        self._without_loss = self._without_loss + 1 if loss is None else 0
        if self._without_loss > _MOST_WITHOUT_LOSS:
            raise TargetError(
                f"`training_step` returned None in {self._without_loss} steps: nothing is trained",
                hint="return the loss; or set `self.automatic_optimization = False` if it steps itself",
            )

    def _run_manual(self, batch: Any) -> dict[str, Any]:
        """Let `training_step` run the passes and the steps."""
        if self._trainer.accumulate_grad_batches > 1:
            raise TargetError(
                "with manual optimization, `--grad-accum` has no meaning",
                hint="`training_step` decides when it steps: leave `--grad-accum` out",
            )
        with before_each_backward(self._on_forward_done):
            output = self._training_step(batch)
        if isinstance(output, Mapping):
            loss = output.get("loss")
            detached = {"loss": loss.detach()} if isinstance(loss, torch.Tensor) else {}
            return {**output, **detached}
        return {"loss": output.detach()} if isinstance(output, torch.Tensor) else {}


def _parts_of(output: Any) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """Return the loss, and what else an automatic `training_step` returned.

    Raises:
        TargetError: it is not of a form that Lightning takes.
    """
    others: dict[str, Any] = {}
    loss = output
    if isinstance(output, Mapping):
        others = {name: value for name, value in output.items() if name != "loss"}
        loss = output.get("loss")
        if loss is None:
            raise TargetError('`training_step` returned a dict without "loss"')
    if loss is not None and not isinstance(loss, torch.Tensor):
        raise TargetError(f"`training_step` returned `{type(loss).__name__}`, not a loss")
    return loss, others

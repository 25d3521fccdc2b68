"""The workload on a device: the model, its batches, its loss and its optimizers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bsfind.errors import UsageError
from bsfind.import_path import resolve_function
from bsfind.inputs import are_shortened, sequence_length
from bsfind.records import Assumption, ModelInfo, OutputMemory
from bsfind.settings import FIRST_SIZE_OF_AXIS, Workload
from bsfind.workload.delivery import Deliveries, Extents, extents_of
from bsfind.workload.inputs import Batch, sized_maker
from bsfind.workload.libraries.lightning import Lightning, LightningTraining
from bsfind.workload.libraries.lightning_module import lightning_class
from bsfind.workload.libraries.proposals import with_inputs
from bsfind.workload.libraries.timm import assumed_classes
from bsfind.workload.libraries.transformers import assumed_configuration
from bsfind.workload.loss import Loss, LossOfTerms, make_loss
from bsfind.workload.loss_choice import LossChoice
from bsfind.workload.model import (
    DATA_PARALLEL_NOTE,
    build_model,
    enable_checkpointing,
    in_channels_last,
    initialize_lazy_layers,
    keyword_arguments,
    on_one_device,
    watching_batch_dimension,
    weights_dtype,
)
from bsfind.workload.optimizer import make_optimizer
from bsfind.workload.outputs import local_part, nbytes_of
from bsfind.workload.parallel import Parallelized, partitioned
from bsfind.workload.precision import PrecisionPlan
from bsfind.workload.training import MakingInputs, ReferenceTraining, Training, TrainingSteps
from bsfind.workload.user_errors import stands_for_torch
from bsfind.workload.variation import Variation

_SMALL_BATCH = 2
"""Samples of the forward pass that tries labels; batch normalisation needs two."""

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
        deliveries: what is known of the batches of the same workload; None: nothing.
        variation: how much these vary, as far as it is known.

    Attributes:
        workload: what is trained, with inputs where the user described none.
        parallelized: the model as it is wrapped for several GPUs; None: for one.
        proposed_inputs: these inputs; none where the user described them.
        model: the module on the device (before torch.compile).
        choice: the choice of the loss, with `--loss auto`.
        deliveries: compares the batches of the user's code with what is asked for.
        variation: compares them with each other.
        last_batch: the last batch as text, for error messages.
        notes: messages for the reader of the report, by code.
        own_optimizers: classes of the optimizers that the user's step function stepped itself.
        weights_dtype: see `results.PrecisionResult`.
        class_name: name of the model's class, before it is wrapped.

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
        deliveries: Deliveries | None = None,
        variation: Variation | None = None,
    ) -> None:
        self.plan = plan
        self.device = device
        self.last_batch: str | None = None
        self.notes: dict[str, str] = {}
        self.own_optimizers: list[str] = []
        self._configured = ""
        self.workload = workload
        plan.set_matmul_precision()
        if model is None:
            model = build_model(workload.target, keyword_arguments(workload.model_args))
        # A step function of the user may use `model.module`.
        model, was_wrapped = on_one_device(model, unwrap=workload.step is None)
        if was_wrapped:
            self.notes["data_parallel"] = DATA_PARALLEL_NOTE
        self._lightning: Lightning | None = None
        if lightning_class(model) is not None:
            if workload.parallel.is_used:
                raise UsageError(
                    "a LightningModule is wrapped by its Trainer, not by `--parallel`",
                    hint="`bsfind launch -- python train.py …` measures the Trainer's strategy",
                )
            self._lightning = Lightning(workload, model, plan, device)
            self.notes.update(self._lightning.notes)
        data = self._own_training.data if self._own_training is not None else None
        self.workload, inputs = with_inputs(workload, model, data)
        workload, asked, built = self.workload, workload, model

        def at_length(length: int) -> Workload:
            return with_inputs(replace(asked, seq_len=length), built, data)[0]

        self._at_length = at_length
        is_proposed = inputs is not None and workload.axis is None
        self.proposed_inputs = workload.inputs if is_proposed else ()
        built_as = assumed_configuration(model), assumed_classes(model)
        self._assumed = [a for a in (*built_as, inputs) if a is not None]
        self._step_fn = resolve_function(workload.step) if workload.step is not None else None
        run = functools.partial(self._step_fn, model) if self._step_fn is not None else model
        called = model.forward if self._step_fn is None else run
        batches = functools.partial(
            sized_maker,
            described_at=lambda size: with_inputs(asked.at(size), built, data)[0],
            # A LightningModule gets the form that its `training_step` takes.
            taken_by=called if self._own_training is None else None,
        )

        def make_on_host(size: int) -> Batch:
            device = torch.device("cpu")
            made = batches(workload, device=device, float_dtype=None, channels_last=False)
            return made(size if workload.axis is None else FIRST_SIZE_OF_AXIS)

        initialize_lazy_layers(model, run, make_on_host)
        if workload.grad_checkpoint:
            enable_checkpointing(model)
        if workload.channels_last:
            model = in_channels_last(model)
        self.class_name = type(model).__name__
        self.parallelized: Parallelized | None = None
        if workload.parallel.is_used:
            model = model.to(dtype=plan.model_dtype)
            self.parallelized = Parallelized(model, workload.parallel, device, plan)
            self.notes.update(self.parallelized.notes)
            model = self.parallelized.model
        moved: Any = model.to(device=device, dtype=plan.model_dtype)
        # A `to` of the model's own may return nothing.
        self.model: nn.Module = moved if isinstance(moved, nn.Module) else model
        self.weights_dtype = None if plan.model_dtype else weights_dtype(self.model)
        if workload.mode == "infer" or not (self._lightning and self._lightning.keeps_modes):
            self.model.train(workload.mode == "train")
        self._callable: Callable[..., Any] = self.model
        if workload.compile:
            self._callable = torch.compile(self.model)
        self._optimizer_args = keyword_arguments(workload.optimizer_args)
        self._batches_of = functools.partial(
            batches,
            device=device,
            float_dtype=plan.model_dtype,
            channels_last=workload.channels_last,
        )
        self._make_batch = self._batches_of(workload)
        self.choice = choice or LossChoice(device, plan.model_dtype)
        self.deliveries = deliveries or Deliveries(workload)
        self.variation = variation or Variation()
        self._evaluates_loss = True
        self._output_bytes = 0
        self._last_size = 1

    @property
    def _own_training(self) -> Lightning | None:
        """The LightningModule, if its own training step and optimizers are used."""
        is_used = self.workload.mode == "train" and self.workload.step is None
        return self._lightning if is_used else None

    @property
    def rank(self) -> int | None:
        """The rank that stands for all; None where there is one GPU."""
        return None if self.parallelized is None else self.parallelized.rank

    @property
    def functions(self) -> tuple[Any, ...]:
        """The user's functions that a step calls."""
        return () if self._step_fn is None else (self._step_fn,)

    def parameter_count(self) -> int:
        """Return the number of parameters; shared ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def gradient_bytes(self) -> int:
        """Return the bytes of the gradients of all parameters that are trained: of a rank, of its shards."""
        return sum(
            local_part(parameter).nbytes
            for parameter in self.model.parameters()
            if parameter.requires_grad
        )

    def describe(self, allocated_bytes: Callable[[], int]) -> ModelInfo:
        """Return what was loaded.

        Args:
            allocated_bytes: returns what is allocated on the device, bytes.
        """
        return ModelInfo(
            # First: some optimizers have state from the start.
            optimizer=self.name_optimizers() if self.workload.mode == "train" else None,
            class_name=self.class_name,
            parameters=self.parameter_count(),
            model_bytes=allocated_bytes(),
            weights_dtype=self.weights_dtype,
            gradient_bytes=self.gradient_bytes(),
        )

    @property
    def has_convolutions(self) -> bool:
        """Whether the model has modules that convolve."""
        return any(isinstance(module, _CONVOLUTIONS) for module in self.model.modules())

    def shorter_sequences(self, times: int) -> int | None:
        """Return a length of sequences, so many times shorter than in a step; None: no input follows it."""
        length = sequence_length(self.proposed_inputs)
        shorter = length // times
        if not shorter or self.workload.axis is not None:
            return None
        try:
            own, others = self._at_length(length).inputs, self._at_length(shorter).inputs
        except UsageError:
            return None
        follows = own == self.workload.inputs and are_shortened(own, others, length, shorter)
        return shorter if follows else None

    def take_sequences_of(self, length: int | None) -> None:
        """Let the batches from now on have sequences of another length; None: of that which was asked for."""
        described = self.workload if length is None else self._at_length(length)
        self._make_batch = self._batches_of(described)

    def make_batch(self, batch_size: int) -> Batch:
        """Return a batch on the device."""
        made = self._make_batch(batch_size)
        self._last_size = batch_size
        self.deliveries.note_batch(made)
        if self.workload.batch_fn is not None:
            self.variation.note(made)
        return self._with_labels(made, batch_size)

    def make_evaluation_batch(self, batch_size: int) -> Batch:
        """Return a batch of the evaluation pass on the device."""
        return self._with_labels(self._make_batch(batch_size), batch_size)

    def _with_labels(self, made: Batch, batch_size: int) -> Batch:
        made.size = self.workload.samples(batch_size)
        batch = self.choice.with_labels(made)
        self.last_batch = batch.describe()
        return batch

    @property
    def _chooses_loss(self) -> bool:
        return (
            self.workload.mode == "train"
            and self.workload.loss == "auto"
            and self._step_fn is None
            and self._own_training is None
        )

    def try_labels(self, batch_size: int, begin: Callable[[int], None] = lambda _: None) -> bool:
        """Find out, once, whether the model computes its loss from labels that were not given.

        Of a LightningModule, find out how its `training_step` takes its batch. Forward passes of small
        batches run, of which nothing is kept. A model that does not run at these is tried at the given batch
        size.

        Args:
            batch_size: number of samples of the steps.
            begin: called with the number of samples of each pass before its batch is made.

        Returns:
            Whether code of the model ran.

        Raises:
            Exception: what the model raises without labels.
        """
        if self._own_training is not None:
            if self.deliveries.batch_form is not None:
                return False
            self.deliveries.batch_form = self._own_training.form_of_batch()
            return True
        specs = self.workload.inputs
        keywords = {spec.argument for spec in specs if spec.argument is not None}
        positional = sum(spec.argument is None for spec in specs)
        if not self._chooses_loss or not self.choice.needs_a_try(self.model, positional, keywords):
            return False
        for size in dict.fromkeys((min(_SMALL_BATCH, batch_size), batch_size)):
            begin(size)
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
        chosen: list[Assumption] = []
        if self._own_training is not None:
            chosen += self._own_training.assumptions_with(self._configured)
        elif self.choice.assumption is not None:
            chosen.append(self.choice.assumption)
        if self.own_optimizers:
            chosen.append(
                Assumption(
                    what="optimizer",
                    value=", ".join(self.own_optimizers),
                    why=f"`--step {self.workload.step}` returns no loss and steps its own; bsfind scales no "
                    "loss for them",
                )
            )
        if self.parallelized is not None:
            chosen += self.parallelized.assumptions
        return [*chosen, *self._evaluation, *self._assumed, *self.deliveries.assumptions]

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return fresh optimizers, without state of an earlier trial."""
        if self._own_training is not None:
            return self._own_training.trainer.configure_optimizers()[0]
        optimizer = make_optimizer(self.workload.optimizer, self._optimizer_args, self.model)
        if self.workload.parallel.strategy == "zero1":
            optimizer = partitioned(optimizer)
        return [optimizer]

    def accumulating(self, micro_batch: int) -> AbstractContextManager[None]:
        """Return the context of a micro-batch: ranks exchange gradients in the last one of a step."""
        if self.parallelized is None or self.workload.grad_accum == 1:
            return contextlib.nullcontext()
        return self.parallelized.accumulating(micro_batch == self.workload.grad_accum - 1)

    def name_optimizers(self) -> str:
        """Make the optimizers once, some of which have state from the start, and return their classes."""
        # Of ZeRO-1, what a rank steps its part with.
        made = (getattr(each, "optim", each) for each in self.make_optimizers())
        self._configured = ", ".join(type(each).__name__ for each in made)
        return self._configured

    def make_training(
        self, making_inputs: MakingInputs, on_forward_done: Callable[[], None]
    ) -> Training:
        """Return what trains in the steps of one trial.

        Args:
            making_inputs: returns a context that is entered to make each batch and its targets.
            on_forward_done: called at the end of each forward pass.
        """
        own = self._own_training
        if own is not None:
            return LightningTraining(
                own,
                make_batch=lambda size: own.loader_batch(
                    self.make_batch(size), self.deliveries.batch_form
                ),
                make_evaluation_batch=lambda size: own.loader_batch(
                    self.make_evaluation_batch(size), self.deliveries.batch_form
                ),
                making_inputs=making_inputs,
                on_forward_done=on_forward_done,
                watching_calls=lambda: self._watching_calls,
            )
        return ReferenceTraining(self, making_inputs, on_forward_done)

    def make_loss(self) -> Loss:
        """Return the loss between the model's output and the (synthetic) targets."""
        if self.workload.loss == "auto":
            return LossOfTerms(functools.partial(self.choice.terms_of, self.model))
        return make_loss(self.workload.loss)

    @stands_for_torch
    def loss_of(self, batch: Batch, loss: Loss) -> Any:
        """Run the forward pass and the loss, inside autocast if the precision has it."""
        with self.plan.autocast(self.device):
            if self._step_fn is not None:
                with self._watching_calls:
                    return self._step_fn(self._callable, *batch.args, **batch.kwargs)
            return loss(self._noted(self._callable(*batch.args, **batch.kwargs)), batch)

    @stands_for_torch
    def evaluate(self, batch: Batch, loss: Loss) -> None:
        """Run the forward pass and the loss of an evaluation pass, without gradients.

        Where the output has another form in evaluation mode, as that of a detector has, there is no loss.
        """
        with self.plan.autocast(self.device):
            if self._step_fn is not None:
                self._step_fn(self._callable, *batch.args, **batch.kwargs)
                return
            output = self._callable(*batch.args, **batch.kwargs)
            self._evaluates_loss = loss.is_of(output)
            if self._evaluates_loss:
                loss(output, batch)

    @property
    def _evaluation(self) -> list[Assumption]:
        """How the evaluation pass runs."""
        if not self.workload.with_eval:
            return []
        if self._own_training is not None:
            value, kept = "the module's validation_step", "the gradients of the last step stay"
        else:
            value = "the step" if self._step_fn is not None else "forward pass and loss"
            if not self._evaluates_loss:
                value = "the forward pass, whose output has no loss in evaluation mode"
            kept = "after `zero_grad`"
        why = f"asked for by `--with-eval`: in evaluation mode and without gradients, {kept}; "
        why += "what a batch returns is released before the next, not gathered"
        return [Assumption(what="evaluation", value=value, why=why)]

    def _noted(self, output: Any) -> Any:
        """Return the output; note its memory."""
        self._output_bytes = max(self._output_bytes, nbytes_of(output) // self._last_size)
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
        return watching_batch_dimension(self.model, self.workload.samples(batch_size), note)

    @property
    def _watching_calls(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if self.workload.compile else self.deliveries.watching()

    def batch_extents(self, batch_size: int) -> Extents:
        """Make a batch and return its numbers (see `delivery.Deliveries.check`)."""
        if self.workload.axis is None:
            batch = self._make_batch(batch_size)
        else:  # of the size of the last one, with another number of samples
            batch = self._make_batch(self._last_size, batch_size)
        return extents_of(batch.args, batch.kwargs)

    def step_extents(self, batch_size: int) -> Extents:
        """Run a step and return the numbers of what it passes to modules."""
        TrainingSteps(self, lambda: None).run(batch_size)
        return self.deliveries.of_step

    def clear_gradients(self) -> None:
        """Release the gradients of the last step."""
        for parameter in self.model.parameters():
            parameter.grad = None

"""The simulated device: traces the training step once, and replays its allocations.

A trial replays what the step would ask of PyTorch's caching allocator, on a GPU of the catalogue with
the memory that a CUDA context leaves free on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsfind.devices.base import (
    DoesNotFit,
    evaluation_that_ran,
    failed_in_evaluation,
    finished_trial,
    short_trial,
)
from bsfind.devices.modelled_gpu import ModelledGpu
from bsfind.devices.prediction_limits import (
    architecture_warnings,
    check_sharding,
    setting_warnings,
    version_warnings,
)
from bsfind.devices.shorter_sequences import searched_length
from bsfind.devices.trial_programs import TrialPrograms
from bsfind.errors import (
    BsfindError,
    ShortBatchError,
    TargetError,
    TimeLimitError,
    UntraceableError,
)
from bsfind.failures.exceptions import plain
from bsfind.failures.leaks import (
    STEPS_DIFFER,
    StepMemory,
    draws_warning,
    leak_of,
    steps_differ,
)
from bsfind.failures.oom import (
    BATCH_NORM_REFUSAL,
    FailureKind,
    classify,
    is_batch_norm_refusal,
    may_depend_on_size,
)
from bsfind.inputs import InputSpec
from bsfind.records import Assumption, DeviceInfo, ModelInfo, ModelKind, OutputMemory, ReportWarning
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.trial import Trial
from bsfind.workload.user_errors import text_of

if TYPE_CHECKING:
    from bsfind.simulation.trace.building import FixedMemory
    from bsfind.simulation.trace.recorder import Observer
    from bsfind.simulation.trace.tracer import Tracer
    from bsfind.simulation.trace.value_shapes import ValueShapes


class SimulatedDevice:
    """Trains on a GPU of the catalogue, which the machine does not need to have.

    Args:
        choice: which GPU, and how much of its memory may be used.

    Attributes:
        gpu: the GPU.
        refusal: see `base.Device.refusal`.
        is_clean: True: each trial has an allocator of its own.
        recording: None: every batch size is replayed, so nothing is extrapolated from a recording.

    Raises:
        UsageError: see `ModelledGpu`.
    """

    is_clean = True
    recording: None = None

    def __init__(self, choice: DeviceChoice) -> None:
        self.gpu = ModelledGpu(choice)
        self._limit_bytes = self.gpu.limit_bytes
        self._tracer: Tracer | None = None
        self._shapes: tuple[Workload, ValueShapes] | None = None
        self._fixed: FixedMemory | None = None
        self._model_bytes = 0
        self._programs: TrialPrograms | None = None
        self._steps_differ = self._has_run = self._ends_with_epoch = False
        self._told: list[ReportWarning] = []
        self.refusal: BsfindError | None = None

    def describe(self) -> DeviceInfo:
        """Return the GPU as torch would show it without another process on it."""
        return self.gpu.describe()

    def load(
        self, workload: Workload, precision: str, observer: Observer | None = None
    ) -> ModelInfo:
        """Build the model without its memory (see `base.Device.load`).

        Args:
            workload: what to train.
            precision: the precision of the step.
            observer: told what the traces do, if given.
        """
        from bsfind.simulation.trace.value_shapes import ValueShapes

        self.close()
        self._limit_bytes = self.gpu.limit_bytes
        self._fixed = None
        self._steps_differ = self._has_run = self._ends_with_epoch = False
        self.gpu.torch.check(workload.parallel)
        check_sharding(workload.parallel, self.gpu.torch.version)
        are_steady = self._programs is not None and self._programs.are_steady
        if self._shapes is None or self._shapes[0] != workload:
            self._shapes = (workload, ValueShapes())
            are_steady = False
        self._precision, self._observer = precision, observer
        tracer = self._tracer = self._opened(workload, precision, observer, self._shapes[1])
        self._programs = TrialPrograms(tracer, are_steady=are_steady)
        allocator = self.new_allocator()
        try:
            tracer.model_program().load(allocator)
        except SimulatedOutOfMemoryError as error:
            fixed = self._fixed_memory()
            raise DoesNotFit(fixed.against(self._capacity_bytes)) from error
        self._model_bytes = allocator.allocated_bytes
        return ModelInfo(
            class_name=tracer.class_name,
            gradient_bytes=tracer.gradient_bytes,
            parameters=tracer.parameters,
            optimizer=tracer.optimizer,
            model_bytes=self._model_bytes,
            weights_dtype=tracer.weights_dtype,
        )

    def _opened(
        self,
        workload: Workload,
        precision: str,
        observer: Observer | None = None,
        shapes: ValueShapes | None = None,
    ) -> Tracer:
        from bsfind.simulation.trace.tracer import Tracer

        return Tracer(
            workload, precision, self.gpu.spec(precision), self.gpu.properties, observer, shapes
        )

    def close(self) -> None:
        """Drop the model, and give torch back its own operators."""
        if self._tracer is not None:
            self._tracer.close()
            self._tracer = None

    @property
    def tracer(self) -> Tracer:
        """The tracer of the model that is loaded."""
        if self._tracer is None:
            raise RuntimeError("a trial before load")
        return self._tracer

    @property
    def _of_trials(self) -> TrialPrograms:
        if self._programs is None:
            raise RuntimeError("a trial before load")
        return self._programs

    def limit_memory(self, nbytes: int) -> None:
        """Let the allocator of later trials reserve at most `nbytes`.

        What is recommended is confirmed within a limit: there, the larger workspace counts where fitted
        trees disagree.
        """
        self._limit_bytes = nbytes
        if self._tracer is not None:
            self._tracer.is_cautious = True

    def memory_left(self) -> None:
        """Return None: no other process uses a simulated GPU."""

    def take_warnings(self) -> list[ReportWarning]:
        """Return what is modelled coarsely, or not modelled (see `base.Device.take_warnings`)."""
        notes = self._tracer.notes if self._tracer is not None else {}
        places = self._tracer.random_places if self._tracer is not None else ()
        known = [
            *version_warnings(self.gpu.torch, self.asks_cudnn),
            *architecture_warnings(self.gpu.card, self.gpu.torch),
            *self._allocator_warnings(),
            *(
                ReportWarning(code=code.partition(":")[0], message=message)
                for code, message in notes.items()
            ),
            *([draws_warning(places)] if places else []),
            *([STEPS_DIFFER] if self._steps_differ else []),
        ]
        if self._tracer is not None and (operators := self._tracer.steps.operators) is not None:
            known += setting_warnings(operators, self.asks_cudnn)
        new = [warning for warning in known if warning not in self._told]
        self._told.extend(new)
        return new

    def asks_cudnn(self) -> bool:
        """Tell whether cuDNN's library of this environment says which workspaces convolutions take."""
        from bsfind.simulation.kernels.convolution_workspace import asks_cudnn

        return asks_cudnn(self.gpu.spec("fp32"))

    def _allocator_warnings(self) -> list[ReportWarning]:
        if not self.gpu.settings.unsupported:
            return []
        names = ", ".join(f"`{name}`" for name in self.gpu.settings.unsupported)
        return [
            ReportWarning(
                code="allocator_not_modelled",
                message=f"the prediction does not follow these options of PyTorch's allocator: {names}",
                hint="they come from the environment (PYTORCH_ALLOC_CONF and the like)",
            )
        ]

    @property
    def assumptions(self) -> list[Assumption]:
        """Return what was chosen for the steps (see `base.Device.assumptions`)."""
        return self._tracer.assumptions if self._tracer is not None else []

    @property
    def model_kind(self) -> ModelKind | None:
        """What most operators of the traced step are (see `base.Device.model_kind`)."""
        operators = self._tracer.steps.operators if self._tracer is not None else None
        return operators.kind if operators is not None else None

    @property
    def convolution_workspaces(self) -> str | None:
        """What the workspaces of convolutions rest on (see `base.Device.convolution_workspaces`)."""
        from bsfind.simulation.kernels.convolution_workspace import workspaces_source

        operators = self._tracer.steps.operators if self._tracer is not None else None
        if operators is None or not operators.convolutions:
            return None
        return workspaces_source(self.gpu.spec("fp32"))

    @property
    def sizes_follow(self) -> bool:
        """Whether trials of other sizes follow from those that ran (see `base.Device.sizes_follow`)."""
        return self._tracer is not None and self._tracer.sizes_follow

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """Return the inputs that follow from the model (see `base.Device.inputs`)."""
        return self._tracer.inputs if self._tracer is not None else ()

    @property
    def output(self) -> OutputMemory | None:
        """Return what the model returned (see `base.Device.output`)."""
        return self._tracer.output if self._tracer is not None else None

    def run_trial(
        self, batch_size: int, steps: int, *, record: bool = True, exact: bool = False
    ) -> Trial:
        """Replay `steps` steps (see `base.Device.run_trial`).

        As many steps are traced as the first trial has. Where the last of these are alike, the further
        steps of a longer trial are taken to be like them if it is not exact, if its trace takes long, or if
        all steps were alike in another precision (see `TrialPrograms`).
        """
        self.refusal = None
        self._of_trials.begin(steps, exact=exact)
        allocator = self.new_allocator()
        traced_steps = 0
        try:
            program = self._of_trials.program(batch_size, steps, exact=exact)
            traced_steps = program.traced_steps
            replayed = program.replay(allocator, program.load(allocator))

            def run_more(count: int) -> Sequence[StepMemory]:
                nonlocal allocator, replayed, traced_steps
                done = len(replayed.memory)
                longer = self._of_trials.all_traced(batch_size, done + count, exact=True)
                traced_steps = longer.traced_steps
                allocator = self.new_allocator()
                replayed = longer.replay(allocator, longer.load(allocator))
                return replayed.memory[done:]

            left = (self._limit_bytes or self.gpu.free_bytes) - replayed.peak_allocated_bytes
            leak = None
            if not self._ends_with_epoch:
                leak = leak_of(replayed.memory, run_more, left)
            if leak is not None and self.tracer.steps.ends_with_epoch(leak, batch_size):
                leak, self._ends_with_epoch = None, True
        except ShortBatchError as error:
            trial, self.refusal = short_trial(batch_size, error)
            return trial
        except TimeLimitError as error:
            raise self._with_a_length(error) from None
        except BsfindError as error:
            return self.trial_of_refusal(error, batch_size)
        except SimulatedOutOfMemoryError as error:
            trial = Trial(
                batch_size=batch_size,
                status="oom",
                num_alloc_retries=allocator.num_alloc_retries,
                traced_steps=traced_steps,
                message=self._why_out_of_memory(error, batch_size),
            )
            if error.is_in_evaluation:
                return failed_in_evaluation(trial, self._evaluated(batch_size))
            return trial
        ran = len(replayed.memory)
        if ran > len(program.step_ends) and replayed.memory[-1].held_bytes == (
            replayed.memory[-2].held_bytes
        ):
            self._of_trials.need(ran)  # for the sizes to come
        self._has_run = True
        late = self._fits_with_old_buckets(batch_size, ran)
        if leak is None and program.batches is None:
            self._steps_differ = self._steps_differ or steps_differ(replayed.memory)
        trial = finished_trial(
            batch_size,
            steps=ran if program.batches is not None else max(steps, ran),
            peak_allocated_bytes=replayed.peak_allocated_bytes,
            peak_reserved_bytes=replayed.peak_reserved_bytes,
            resident_bytes=replayed.resident_bytes[-1],
            activation_bytes=replayed.activation_bytes,
            retries=replayed.retries,
            peaks_by_step=replayed.peaks_by_step,
            leak=leak,
            evaluation=replayed.peaks_of_evaluation
            and evaluation_that_ran(
                self._evaluated(batch_size), replayed.peaks_of_evaluation, replayed.peaks_of_steps
            ),
            traced_steps=traced_steps,
            batches=program.batches,
            rank=self.tracer.rank,
        )
        return dataclasses.replace(trial, fits_with_old_buckets=late)

    def _fits_with_old_buckets(self, batch_size: int, steps: int) -> bool | None:
        """Tell whether the device has room for DDP's first buckets for one step more; None without DDP."""
        if self.tracer.workload.parallel.strategy not in ("ddp", "zero1"):
            return None
        program = self.tracer.program_with_old_buckets(batch_size, self._of_trials.at_most(steps))
        if program is None:
            return None
        allocator = self.gpu.allocator(self.gpu.limit_bytes)
        try:
            program.replay(allocator, program.load(allocator))
        except SimulatedOutOfMemoryError:
            return False
        return True

    def _evaluated(self, batch_size: int) -> int:
        return self.tracer.workload.evaluated(batch_size)

    def _fixed_memory(self) -> FixedMemory:
        if self._fixed is None:
            self._fixed = self.tracer.fixed_memory()
        return self._fixed

    def _why_out_of_memory(self, error: SimulatedOutOfMemoryError, batch_size: int) -> str:
        """Return the reason; with the memory that any batch size takes, where no smaller one can help."""
        # Gradients and the state of most optimizers are three times the model.
        is_fixed_too_large = 4 * self._model_bytes > self._capacity_bytes
        if batch_size > 1 and not is_fixed_too_large:
            return str(error)
        fixed = self._fixed_memory().against(self._capacity_bytes)
        return f"{error}; at any {self.tracer.workload.searched}: {fixed}"

    @property
    def _capacity_bytes(self) -> int:
        return min(self.gpu.free_bytes, self._limit_bytes or self.gpu.free_bytes)

    def _with_a_length(self, error: TimeLimitError) -> TimeLimitError:
        """Return the error of a step that takes too long, with a length of sequences that is searched."""
        assert self._shapes is not None
        (workload, shapes), precision = self._shapes, self._precision
        if workload.axis is not None:
            return error
        inputs = self.tracer.inputs
        self.close()
        length = searched_length(workload, inputs, lambda shorter: self._opened(shorter, precision))
        self._tracer = self._opened(workload, precision, self._observer, shapes)
        self._programs = TrialPrograms(self._tracer, are_steady=False)
        if length is None:
            return error
        return TimeLimitError(
            error.message,
            hint=f"`--seq-len {length}` is short enough to be searched; "
            "`check --batch-size` traces one size, however long that takes",
        )

    def trial_of_refusal(self, error: BsfindError, batch_size: int) -> Trial:
        """Return the trial of a batch size that the step refuses.

        Raises:
            BsfindError: the user's code does not work at any size, or cannot be traced.
        """
        if batch_size == 1 and is_batch_norm_refusal(error):
            return Trial(
                batch_size=1, status="error", error_kind="batch_norm", message=BATCH_NORM_REFUSAL
            )
        if batch_size > 1 and classify(error) is FailureKind.SIZE_LIMIT:
            message = " ".join(str(error).split())
            return Trial(
                batch_size=batch_size, status="error", error_kind="kernel_limit", message=message
            )
        if isinstance(error, UntraceableError) and self._has_run:
            self.refusal = error.without_frames()
            return Trial(
                batch_size=batch_size,
                status="error",
                error_kind="untraceable",
                message=error.message,
            )
        raised = plain(error.__cause__) if error.__cause__ is not None else None
        if isinstance(error, TargetError) and isinstance(raised, Exception):
            # What bsfind itself reports holds at every size.
            is_own = type(error) is TargetError and raised is not error
            if is_own and may_depend_on_size(raised):
                # A copy: the traceback holds the frames, and these the tensors of the step.
                self.refusal = TargetError(error.message, detail=error.detail, hint=error.hint)
                return Trial(
                    batch_size=batch_size,
                    status="error",
                    error_kind="refused",
                    message=text_of(raised),
                )
        raise error

    def new_allocator(self) -> CachingAllocator:
        """Return an allocator with the memory that the device has."""
        return self.gpu.allocator(self._limit_bytes)

"""Traces a workload: the transfer of the model to the GPU, and the training steps of a trial."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from time import process_time

import torch

from bsfind.errors import BsfindError, TargetError, UntraceableError
from bsfind.failures.exceptions import plain
from bsfind.failures.leaks import draws_assumption, is_freed_at_the_end, note_of_epoch
from bsfind.inputs import InputSpec
from bsfind.records import Assumption, OutputMemory
from bsfind.settings import Workload
from bsfind.simulation.kernels.call import GpuSpec, load_rules
from bsfind.simulation.trace.building import FixedMemory
from bsfind.simulation.trace.cuda_paths import meta_kernel_gaps, quantised_weights
from bsfind.simulation.trace.cuda_paths.autocast import AutocastCuda
from bsfind.simulation.trace.cuda_paths.backward import GradientSums
from bsfind.simulation.trace.cuda_paths.composites import CudaComposites
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.masquerade.compiler import (
    UNCOMPILED,
    postpone_compiler,
    uncompiled,
    uncompiled_message,
)
from bsfind.simulation.trace.masquerade.device import CudaMasquerade
from bsfind.simulation.trace.masquerade.paged_memory import paged_memory
from bsfind.simulation.trace.masquerade.torch_cuda import SimulatedGpu, simulated_cuda_module
from bsfind.simulation.trace.masquerade.torch_functions import cuda_groups, undelegated_functions
from bsfind.simulation.trace.program import Program, Source, StepOperators, operators_of, program_of
from bsfind.simulation.trace.recorder import Entry, Observer, Recorder
from bsfind.simulation.trace.refusals import report_of
from bsfind.simulation.trace.scaling import Traces
from bsfind.simulation.trace.self_check import problems
from bsfind.simulation.trace.torch_private import allows_tf32_convolutions, check_torch
from bsfind.simulation.trace.traced_model import TracedModel
from bsfind.simulation.trace.value_operators import value_handlers
from bsfind.simulation.trace.value_shapes import ValueShapes, ValuesNeededError, ValueStep
from bsfind.simulation.trace.value_steps import run_with_values
from bsfind.trial import BatchVariation, Leak
from bsfind.workload.delivery import Extents
from bsfind.workload.libraries.pretrained import random_weights
from bsfind.workload.precision import PrecisionPlan, precision_plan
from bsfind.workload.randomness import LargestStep, StepSize
from bsfind.workload.step import LoadedWorkload
from bsfind.workload.training import TrainingSteps

_LONG_S = 4.0
"""Processor time of a trace that takes long, seconds."""

_STEPS_OF_EPOCH = 5
"""Steps of an epoch that is traced to see what its end frees."""


class Tracer:
    """Traces one workload in one precision on one GPU.

    While a tracer is open, this process's torch cannot be used for anything else: operators and
    functions of `torch.cuda` are replaced.

    Args:
        workload: what to train.
        precision: name of the precision (never `amp`).
        gpu: the GPU that is modelled.
        properties: its properties, for code that asks.
        observer: told what the trace does, if given.
        shapes: what depends on values in steps of the same workload, if any were run.

    Attributes:
        operators: what the step that was traced last consists of; None before the first.

    Raises:
        UntraceableError: the workload needs what cannot be predicted.
        BsfindError: the user's code failed while the model was built.
    """

    def __init__(
        self,
        workload: Workload,
        precision: str,
        gpu: GpuSpec,
        properties: SimulatedGpu | None = None,
        observer: Observer | None = None,
        shapes: ValueShapes | None = None,
    ) -> None:
        self._asked = workload
        self._plan = precision_plan(precision)
        self._gpu = gpu
        self._properties = properties or SimulatedGpu(
            name="GPU",
            total_memory=1 << 40,
            major=gpu.capability[0],
            minor=gpu.capability[1],
            multi_processor_count=gpu.sm_count,
            max_threads_per_multi_processor=gpu.max_threads_per_sm,
        )
        postpone_compiler()
        check_torch()
        load_rules()
        self._sums = GradientSums()
        self._recorder = Recorder(observer)
        self._observer = self._recorder.observer
        if workload.compile:
            self._recorder.note(UNCOMPILED, uncompiled_message("`--compile`"))
            workload = dataclasses.replace(workload, compile=False)
        for problem in problems():
            self._recorder.note(
                "estimate",
                f"this is an estimate, not exact: the tracer does not fit this torch: {problem}",
            )
        self._autocast = AutocastCuda(self._observer.has_cast)
        self._composites = CudaComposites(gpu)
        self._dispatcher = Dispatcher(
            self._recorder,
            {
                **value_handlers(),
                **meta_kernel_gaps.handlers(),
                **quantised_weights.handlers(),
                "aten::add.Tensor": self._sums.handle,
            },
            self._composites.kernels,
            shapes,
        )
        self._shapes = self._dispatcher.shapes
        # Sizes hardly depend on the precision, and the CPU is fast in float32.
        self._plans_with_values = [self._plan]
        if not self._shapes.steps and precision != "fp32":
            self._plans_with_values.append(precision_plan("fp32"))
        self._model = TracedModel(workload, self._plan, self._dispatcher, self._recorder)
        self._open = contextlib.ExitStack()
        self._entries: list[Entry] = []
        self._largest = LargestStep()
        # By the number of steps, and of those that are enough.
        self._traces: defaultdict[tuple[int, int | None], Traces] = defaultdict(Traces)
        self._variations: dict[tuple[int, int, int | None], BatchVariation | None] = {}
        self.operators: StepOperators | None = None
        try:
            self._open.enter_context(self._simulated())
        except (AttributeError, RuntimeError, TypeError) as error:
            raise UntraceableError(
                f"torch {torch.__version__} is not one that can be traced without a GPU",
                detail=f"{type(error).__name__}: {error}",
                hint="`bsfind env` shows what does not fit; `--device cuda` measures instead",
            ) from error
        try:
            self._model.load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give torch back its own operators."""
        self._model.close()
        self._open.close()
        self._model.collect()
        self._dispatcher.hand_over(0)  # to the tracer that comes next
        gc.unfreeze()

    @contextlib.contextmanager
    def _simulated(self) -> Iterator[None]:
        """Let this thread's torch run on the simulated GPU."""
        is_on_gpu = self._dispatcher.is_on_gpu
        with (
            simulated_cuda_module(
                *(self._gpu, self._properties, self._autocast.clear_cache),
                lambda: self._recorder.allocated_bytes,
            ),
            self._composites.active(is_on_gpu),
            cuda_groups(is_on_gpu),
            undelegated_functions(),
            uncompiled(self._recorder.note),
            random_weights(self._recorder.note),
            self._autocast.active(),
            self._dispatcher.active(),
        ):
            self._sums.calibrate()
            gc.freeze()  # torch's modules are many objects, which no collection needs to visit
            masquerade = CudaMasquerade(self._dispatcher)
            with masquerade.in_backward(), masquerade, self._observer.watching():
                yield

    @property
    def workload(self) -> Workload:
        """What is trained."""
        return self._model.loaded.workload

    @property
    def class_name(self) -> str:
        """Name of the model's class."""
        return type(self._model.loaded.model).__name__

    @property
    def optimizer(self) -> str | None:
        """Classes of the optimizers of the steps so far; None in inference."""
        return ", ".join(self._model.loaded.own_optimizers) or self._model.optimizer

    @property
    def parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return self._model.loaded.parameter_count()

    @property
    def weights_dtype(self) -> str | None:
        """Dtype of the parameters, where it is not float32 (see `records.PrecisionResult`)."""
        return self._model.loaded.weights_dtype

    def fixed_memory(self) -> FixedMemory:
        """Return what the step takes at any batch size. No trial may be going on."""
        with paged_memory(self._recorder.note):
            return self._model.fixed_memory()

    @property
    def assumptions(self) -> list[Assumption]:
        """What was chosen for the steps, as far as it is known."""
        chosen, places = self._model.loaded.assumptions, self.random_places
        chosen = [*chosen, *self._shapes.assumptions]
        return [*chosen, draws_assumption(places)] if places else chosen

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """The inputs that follow from the model; none if they were described, or it is not built."""
        return self._model.loaded.proposed_inputs if self._model.is_loaded else ()

    @property
    def output(self) -> OutputMemory | None:
        """What the model returned to a loss of bsfind's; None if to none."""
        return self._model.loaded.output

    @property
    def notes(self) -> dict[str, str]:
        """What the reader of the result must know, by `code` or `code:what`."""
        of_the_model = self._model.loaded.notes if self._model.is_loaded else {}
        return {**of_the_model, **self._recorder.notes, **self._shapes.notes}

    @property
    def random_places(self) -> tuple[str, ...]:
        """Where in the user's code random numbers are drawn that decide how large a step is."""
        return self._largest.places

    # ------------------------------------------------------------------------------- the steps

    def model_program(self) -> Program:
        """Return the program that ends when the model is on the GPU."""
        return program_of(self._model.load_entries, (), self._gpu)

    def program(
        self,
        batch_size: int,
        steps: int,
        *,
        exact: bool = False,
        enough: int | None = None,
        sources: list[Source] | None = None,
    ) -> Program:
        """Return the program of a trial.

        Args:
            batch_size: number of samples.
            steps: optimizer steps.
            exact: trace this very batch size, whether it follows from others or not.
            enough: steps after which a trace that takes long ends; None: it has all steps.
            sources: list that gets the source of each block (see `program_of`).

        Raises:
            UntraceableError: an operator needs values, or has no model.
            BsfindError: the user's code failed.
        """
        entries, is_traced = self._traces[steps, enough].at(
            batch_size,
            lambda: self._traced_with_shapes(batch_size, steps, enough),
            exact=exact or self._model.loaded.variation.is_there,
        )
        program = program_of(self._model.load_entries, entries, self._gpu_as_set(), sources)
        program.traced_steps = len(program.step_ends) if is_traced else 0
        program.batches = self._variations.get((batch_size, steps, enough))
        return program

    def ends_with_epoch(self, leak: Leak, batch_size: int) -> bool:
        """Tell whether the end of an epoch frees what a leak left; a note says so.

        Args:
            leak: the leak that the steps of a trial show.
            batch_size: number of samples.

        Raises:
            BsfindError: the user's code failed.
        """
        held: list[int] = []
        ended: list[int] = []
        loaded, recorder = self._model.loaded, self._recorder

        def run() -> bool:
            runner = TrainingSteps(loaded, lambda: None, self._observer.making_inputs)
            with self._largest.searched(self._asked.samples(batch_size)):
                for _ in range(_STEPS_OF_EPOCH):
                    self._shapes.begin(batch_size)
                    runner.run(batch_size)
                    held.append(recorder.allocated_bytes - runner.gradient_bytes)
            batches = runner.end_epoch()
            if batches is not None:
                held_at_end = recorder.allocated_bytes - runner.gradient_bytes
                if is_freed_at_the_end(leak, held, held_at_end, batches):
                    ended.append(batches)
            return True

        self._running(batch_size, run)
        for batches in ended:
            recorder.note(*note_of_epoch(leak, batches))
        return bool(ended)

    def _gpu_as_set(self) -> GpuSpec:
        """Return the GPU with what the user's code has set so far: on import, in `forward`, anywhere."""
        return dataclasses.replace(
            self._gpu,
            tf32_convolutions=self._gpu.tf32_convolutions and allows_tf32_convolutions(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    def _traced_with_shapes(
        self, batch_size: int, steps: int, enough: int | None
    ) -> Sequence[Entry]:
        """Trace a trial; where its shapes depend on values, after steps with values."""
        while True:
            with contextlib.suppress(ValuesNeededError):
                entries = self._traced(batch_size, steps, enough or steps)
                found = self._model.loaded.variation.found()
                self._variations[batch_size, steps, enough] = found
                return entries
            self._run_with_values(self._plans_with_values.pop())
            self._traces.clear()

    def _run_with_values(self, plan: PrecisionPlan) -> None:
        notes, values = dict(self._recorder.notes), self._dispatcher.values

        def run(value_step: ValueStep) -> None:
            loaded, batch_size = self._model.loaded, value_step.batch_size

            def step() -> bool:
                loaded.try_labels(batch_size, self._shapes.begin)
                runner = TrainingSteps(loaded, lambda: None)
                with self._largest.searched(batch_size, value_step.seed):
                    first, before = len(self._recorder.entries), values.computed_bytes
                    self._shapes.begin(batch_size)
                    runner.run(batch_size)
                    value_step.nbytes = self._recorder.size_since(first)[0]
                    value_step.computed_bytes = values.computed_bytes - before
                    if loaded.workload.with_eval:
                        runner.evaluate(batch_size)
                return True

            loaded.deliveries.begin()
            self._running(batch_size, step)

        try:
            with self._model.with_values(plan) as load:
                run_with_values(self._shapes, load, run)
        except BsfindError as error:
            self._shapes.failure = error.without_frames()
        self._recorder.notes = notes

    def _traced(self, batch_size: int, steps: int, enough: int) -> Sequence[Entry]:
        self._model.loaded.deliveries.begin()
        self._running(
            batch_size, lambda: self._model.loaded.try_labels(batch_size, self._shapes.begin)
        )
        try:
            self._trace(batch_size, steps, enough)
        except TargetError:
            self._check_delivery(batch_size)  # it may be the reason
            raise
        if self._check_delivery(batch_size):  # what the observer has seen last is of another size
            self._trace(batch_size, steps, enough)
        self.operators = operators_of(self._entries)
        return self._entries

    def _trace(self, batch_size: int, steps: int, enough: int) -> None:
        notes = dict(self._recorder.notes)
        while not self._running(batch_size, lambda: self._run(batch_size, steps, enough)):
            self._recorder.notes = dict(notes)  # what other draws would have needed to know
            self._model.loaded.choice.forget_loss()

    def _check_delivery(self, batch_size: int) -> bool:
        """Compare the batch that was traced with what was asked for (see `delivery.Deliveries`).

        Returns:
            Whether batches of other sizes were made for it.
        """
        others: list[int] = []
        notes = dict(self._recorder.notes)

        def of(size: int, make: Callable[[LoadedWorkload, int], Extents]) -> Extents | None:
            others.append(size)
            made: list[Extents] = []

            def run() -> bool:
                made.append(make(self._model.loaded, size))
                return True

            try:
                self._running(size, run)
            except BsfindError:
                return None
            finally:
                self._recorder.notes = dict(notes)
            return made[-1]

        note = self._model.loaded.deliveries.check(
            batch_size,
            lambda size: of(size, LoadedWorkload.batch_extents),
            lambda size: of(size, LoadedWorkload.step_extents),
        )
        if note is not None:
            self._recorder.note("batch_ignored", note)
        return bool(others)

    def _running(self, batch_size: int, run: Callable[[], bool]) -> bool:
        """Run something that calls the model, each time from its fresh state, and clear up after it.

        Where the user's code raises upon a value that is not known, it runs again with another.
        """

        def attempt() -> bool:
            self._model.be_fresh()
            loaded = self._model.loaded
            try:
                self._shapes.begin(batch_size)
                self._shapes.may_ask = bool(self._plans_with_values)
                return run()
            finally:
                self._shapes.may_ask = False
                self._entries = list(self._recorder.entries)
                loaded.clear_gradients()
                self._autocast.clear_cache()
                self._composites.forget()
                gc.collect()

        try:
            keeps_all = self._dispatcher.values.keeps_all
            threads = contextlib.nullcontext() if keeps_all else _one_thread()
            with threads, paged_memory(self._recorder.note):
                return self._dispatcher.reads.run(attempt)
        except (KeyboardInterrupt, ValuesNeededError):
            raise
        except BaseException as raised:
            error = plain(raised)
            raise report_of(
                error,
                doing=f"{self._asked.searched} {batch_size} in {self._plan.name}",
                inputs=self._model.loaded.last_batch if self._model.is_loaded else None,
            ) from error

    def _run(self, batch_size: int, steps: int, enough: int) -> bool:
        """Run the steps; False if they have to be run anew (see `LargestStep.decide`)."""
        recorder, loaded, largest = self._recorder, self._model.loaded, self._largest

        def forward_is_done() -> None:
            self._observer.has_targets(runner.targets)
            recorder.mark("forward_end")

        def size_of_step() -> StepSize:
            loaded.clear_gradients()
            first = len(recorder.entries)
            self._shapes.begin(batch_size)
            runner.run(batch_size)
            return recorder.size_since(first)

        runner = TrainingSteps(loaded, forward_is_done, self._observer.making_inputs)
        begin = process_time()
        with largest.searched(self._asked.samples(batch_size)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while runner.wants_more(
                enough if (is_long := process_time() >= begin + _LONG_S) else steps, is_long=is_long
            ):
                recorder.mark("forward_begin")
                self._shapes.begin(batch_size)
                runner.run(batch_size)
                recorder.step_is_over(runner.gradient_bytes, is_warm_up=runner.is_warm_up)
                if largest.is_undecided:
                    largest.decide(size_of_step)
                    return False
            runner.check_completed()
            if loaded.workload.with_eval:
                recorder.mark("evaluation_begin")
                self._shapes.go_on(loaded.workload.evaluated(batch_size))
                runner.evaluate(loaded.workload.evaluated(batch_size))
                recorder.mark("evaluation_end")
        return True


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread: the values of a trace are few, and other threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

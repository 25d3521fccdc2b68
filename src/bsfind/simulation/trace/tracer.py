"""Traces a workload: the transfer of the model to the GPU, and the training steps of a trial."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from bsfind.errors import TargetError, UntraceableError
from bsfind.failures.leaks import draws_assumption
from bsfind.import_path import parse_import_path, resolve
from bsfind.records import Assumption, OutputMemory
from bsfind.settings import Workload
from bsfind.simulation.kernels.call import GpuSpec, load_rules
from bsfind.simulation.trace.building import Builder, FixedMemory, fixed_memory_of
from bsfind.simulation.trace.cuda_paths import meta_kernel_gaps
from bsfind.simulation.trace.cuda_paths.autocast import AutocastCuda
from bsfind.simulation.trace.cuda_paths.backward import GradientSums
from bsfind.simulation.trace.cuda_paths.composites import CudaComposites
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.masquerade.device import CudaMasquerade
from bsfind.simulation.trace.masquerade.torch_cuda import SimulatedGpu, simulated_cuda_module
from bsfind.simulation.trace.masquerade.torch_functions import (
    cuda_groups,
    postpone_compiler,
    undelegated_functions,
)
from bsfind.simulation.trace.program import Program, Source, StepOperators, operators_of, program_of
from bsfind.simulation.trace.recorder import Entry, Observer, Recorder, clear_function_caches
from bsfind.simulation.trace.refusals import report_of
from bsfind.simulation.trace.scaling import Traces
from bsfind.simulation.trace.self_check import problems
from bsfind.simulation.trace.torch_private import check_torch
from bsfind.simulation.trace.value_operators import value_handlers
from bsfind.units import format_bytes
from bsfind.workload.loss_choice import LossChoice
from bsfind.workload.model import build_model, keyword_arguments
from bsfind.workload.precision import precision_plan
from bsfind.workload.randomness import LargestStep, StepSize, reproducible_building
from bsfind.workload.step import LoadedWorkload, TrainingSteps

_DEVICE = torch.device("cuda", 0)


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

    Attributes:
        optimizer: class of the optimizer; None in inference.
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
    ) -> None:
        if workload.compile:
            raise UntraceableError(
                "`--compile` cannot be predicted: compiled kernels choose their memory themselves",
                hint="leave it out for an estimate of the uncompiled step, or measure on a GPU",
            )
        self._workload = workload
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
                "aten::add.Tensor": self._sums.handle,
            },
            self._composites.kernels,
        )
        self._builder = Builder(self._dispatcher)
        self._open = contextlib.ExitStack()
        self._load_entries: list[Entry] = []
        self._entries: list[Entry] = []
        self._first_block = 0
        self._loaded: LoadedWorkload | None = None
        self._choice: LossChoice | None = None
        self.optimizer: str | None = None
        self._largest = LargestStep()
        self._traces = Traces()
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
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give torch back its own operators."""
        self._loaded = None
        self._open.close()
        self._collect()
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
            self._autocast.active(),
            self._dispatcher.active(),
        ):
            self._sums.calibrate()
            gc.freeze()  # torch's modules are many objects, which no collection needs to visit
            masquerade = CudaMasquerade(self._dispatcher)
            with masquerade.in_backward(), masquerade, self._observer.watching():
                yield

    # ------------------------------------------------------------------------------- the model

    def _load(self) -> None:
        """Build the model and move it to the simulated GPU."""
        try:
            why = self._failure_without_memory()
            if why is not None:
                self._start_over()
                with self._builder.in_memory(why), reproducible_building():
                    self._loaded = self._built()
                self._recorder.note(
                    "built_in_host_memory",
                    "the model could not be built without memory for its weights, so it was built a "
                    f"second time, in {format_bytes(self._builder.weight_bytes)} of the host's "
                    f"memory; the prediction is the same. The reason: {why}",
                )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # `sys.exit`, say
            raise report_of(error, doing="building the model") from error
        self._make_first_optimizer()
        self._observer.model_is_loaded(self._workload_on_gpu.model)
        gc.collect()
        gc.freeze()
        self._load_entries = self._recorder.entries
        self._first_block = self._recorder.count

    def _make_first_optimizer(self) -> None:
        """Make the optimizer once: some have state from the start, which a load needs room for."""
        if self._workload.mode != "train":
            return
        try:
            self.optimizer = type(self._workload_on_gpu.make_optimizer()).__name__
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise report_of(error, doing="building the optimizer") from error

    def _failure_without_memory(self) -> str | None:
        """Build the model with weights that have no memory; returns why that failed, if it did."""

        def build() -> None:
            self._start_over()
            with self._builder.without_memory(), reproducible_building():
                self._loaded = self._built()

        try:
            self._dispatcher.reads.run(build)
        except UntraceableError as error:
            return str(error)
        except TargetError:
            raise
        except Exception as error:  # not kept: its frames hold the model
            return report_of(error, doing="building the model").message
        return None

    def _built(self) -> LoadedWorkload:
        workload = self._workload
        model = build_model(workload.target, keyword_arguments(workload.model_args))
        if model is resolve(parse_import_path(workload.target)):
            model = copy.deepcopy(model)  # the next precision finds it on the host, as now
        self._builder.take_memory(model)
        loaded = LoadedWorkload(workload, self._plan, _DEVICE, model, self._choice)
        self._choice = loaded.choice
        return loaded

    def _start_over(self) -> None:
        """Forget the model, and all that it had on the GPU but what the user's code keeps."""
        self._loaded = None
        if not self._dispatcher.rewind(0):
            self._collect()
            self._dispatcher.rewind(0, keeping=True)

    @staticmethod
    def _collect() -> None:
        """Free what nothing but cycles and the caches of functions hold."""
        gc.unfreeze()
        gc.collect()
        if clear_function_caches():
            gc.collect()

    def _forget_trial(self) -> bool:
        """Forget the last trial; False: it left something in the model."""
        if self._loaded is None:
            return False
        if self._dispatcher.rewind(self._first_block):
            return True
        gc.unfreeze()
        cleared = clear_function_caches()
        if cleared:
            gc.collect()
        gc.freeze()
        return cleared and self._dispatcher.rewind(self._first_block)

    @property
    def class_name(self) -> str:
        """Name of the model's class."""
        return type(self._workload_on_gpu.model).__name__

    @property
    def parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return self._workload_on_gpu.parameter_count()

    @property
    def weights_dtype(self) -> str | None:
        """Dtype of the parameters, where it is not float32 (see `records.PrecisionResult`)."""
        return self._workload_on_gpu.weights_dtype

    def fixed_memory(self) -> FixedMemory:
        """Return what the step takes at any batch size. No trial may be going on."""
        try:
            return fixed_memory_of(self._workload_on_gpu, self.optimizer)
        finally:
            self._workload_on_gpu.clear_gradients()
            gc.collect()
            self._dispatcher.rewind(self._first_block)

    @property
    def assumptions(self) -> list[Assumption]:
        """What was chosen for the steps, as far as it is known."""
        chosen, places = self._workload_on_gpu.assumptions, self.random_places
        return [*chosen, draws_assumption(places)] if places else chosen

    @property
    def output(self) -> OutputMemory | None:
        """What the model returned to a loss of bsfind's; None if to none."""
        return self._workload_on_gpu.output

    @property
    def notes(self) -> dict[str, str]:
        """What the reader of the result must know, by `code` or `code:what`."""
        of_the_model = self._loaded.notes if self._loaded is not None else {}
        return {**of_the_model, **self._recorder.notes}

    @property
    def random_places(self) -> tuple[str, ...]:
        """Where in the user's code random numbers are drawn that decide how large a step is."""
        return self._largest.places

    @property
    def _workload_on_gpu(self) -> LoadedWorkload:
        assert self._loaded is not None
        return self._loaded

    # ------------------------------------------------------------------------------- the steps

    def model_program(self) -> Program:
        """Return the program that ends when the model is on the GPU."""
        return program_of(self._load_entries, (), self._gpu)

    def program(
        self,
        batch_size: int,
        steps: int,
        *,
        exact: bool = False,
        sources: list[Source] | None = None,
    ) -> Program:
        """Return the program of a trial.

        Args:
            batch_size: number of samples.
            steps: optimizer steps.
            exact: trace this very batch size (see `Traces.at`).
            sources: list that gets the source of each block (see `program_of`).

        Raises:
            UntraceableError: an operator needs values, or has no model.
            BsfindError: the user's code failed.
        """
        entries = self._traces.at(batch_size, steps, self._traced, exact=exact)
        return program_of(self._load_entries, entries, self._gpu_as_set(), sources)

    def _gpu_as_set(self) -> GpuSpec:
        """Return the GPU with what the user's code has set so far: on import, in `forward`, anywhere."""
        return dataclasses.replace(
            self._gpu,
            tf32_convolutions=self._gpu.tf32_convolutions and _allows_tf32_convolutions(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    def _traced(self, batch_size: int, steps: int) -> Sequence[Entry]:
        self._running(batch_size, lambda: self._workload_on_gpu.try_labels(batch_size))
        notes = dict(self._recorder.notes)
        while not self._running(batch_size, lambda: self._run(batch_size, steps)):
            self._recorder.notes = notes  # what other draws would have needed to know
            self._workload_on_gpu.choice.forget_loss()
        self.operators = operators_of(self._entries)
        return self._entries

    def _be_fresh(self) -> None:
        """Load the model again if it keeps anything of what ran before: the next would lack it."""
        if not self._forget_trial():
            self._load()
            self._dispatcher.rewind(self._first_block)

    def _running(self, batch_size: int, run: Callable[[], bool]) -> bool:
        """Run something that calls the model, each time from its fresh state, and clear up after it.

        Where the user's code raises upon a value that is not known, it runs again with another.
        """

        def attempt() -> bool:
            self._be_fresh()
            loaded = self._workload_on_gpu
            try:
                return run()
            finally:
                self._entries = list(self._recorder.entries)
                loaded.clear_gradients()
                self._autocast.clear_cache()
                self._composites.forget()
                gc.collect()

        try:
            return self._dispatcher.reads.run(attempt)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise report_of(
                error,
                doing=f"batch size {batch_size} in {self._plan.name}",
                inputs=self._loaded.last_batch if self._loaded is not None else None,
            ) from error

    def _run(self, batch_size: int, steps: int) -> bool:
        """Run the steps; False if they have to be run anew (see `LargestStep.decide`)."""
        recorder, loaded, largest = self._recorder, self._workload_on_gpu, self._largest

        def forward_is_done() -> None:
            self._observer.has_targets(runner.targets)
            recorder.mark("forward_end")

        def size_of_step() -> StepSize:
            loaded.clear_gradients()
            first = len(recorder.entries)
            runner.run(batch_size)
            return recorder.size_since(first)

        runner = TrainingSteps(loaded, forward_is_done, self._observer.making_inputs)
        with largest.searched(batch_size), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while runner.wants_more(steps):
                recorder.mark("forward_begin")
                runner.run(batch_size)
                recorder.step_is_over(runner.gradient_bytes, is_warm_up=runner.is_warm_up)
                if largest.is_undecided:
                    largest.decide(size_of_step)
                    return False
        return True


def _allows_tf32_convolutions() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the user's code has set `fp32_precision` instead, torch 2.9 and later
        return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]

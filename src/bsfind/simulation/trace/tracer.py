"""Traces a workload: the transfer of the model to the GPU, and the training steps of a trial."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from bsfind.errors import UntraceableError
from bsfind.failures.leaks import draws_assumption
from bsfind.inputs import InputSpec
from bsfind.records import Assumption, OutputMemory
from bsfind.settings import Workload
from bsfind.simulation.kernels.call import GpuSpec
from bsfind.simulation.trace.building import FixedMemory
from bsfind.simulation.trace.distributed.old_buckets import with_old_buckets
from bsfind.simulation.trace.masquerade.compiler import UNCOMPILED, uncompiled_message
from bsfind.simulation.trace.masquerade.paged_memory import paged_memory
from bsfind.simulation.trace.masquerade.torch_cuda import SimulatedGpu
from bsfind.simulation.trace.program import Program, Source, program_of
from bsfind.simulation.trace.recorder import Entry, Observer, Recorder
from bsfind.simulation.trace.repetition import Repetition
from bsfind.simulation.trace.scaling import Traces
from bsfind.simulation.trace.simulated_torch import SimulatedTorch, anonymous, gpu_as_set
from bsfind.simulation.trace.traced_model import TracedModel
from bsfind.simulation.trace.traced_steps import TracedSteps
from bsfind.simulation.trace.value_shapes import ValueShapes
from bsfind.trial import BatchVariation
from bsfind.workload.libraries.pretrained import random_weights
from bsfind.workload.precision import precision_plan


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
        steps: runs the training steps.
        is_cautious: whether programs count the larger workspace where it is not certain.

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
        self._recorder = Recorder(observer)
        self._torch = SimulatedTorch(
            gpu,
            properties or anonymous(gpu),
            self._recorder,
            shapes,
            is_parallel=workload.parallel.is_used,
        )
        if workload.compile:
            self._recorder.note(UNCOMPILED, uncompiled_message("`--compile`"))
            workload = dataclasses.replace(workload, compile=False)
        self._dispatcher = self._torch.dispatcher
        self._shapes = self._dispatcher.shapes
        self._model = TracedModel(workload, self._plan, self._dispatcher, self._recorder)
        self._open = contextlib.ExitStack()
        # By the number of steps, and of those that are enough.
        self._traces: defaultdict[tuple[int, int | None], Traces] = defaultdict(Traces)
        self._variations: dict[tuple[int, int, int | None], BatchVariation | None] = {}
        self._repetition = Repetition()
        self.is_cautious = False
        self._shortened: set[tuple[int, int, int | None]] = set()
        self._first_entries: dict[tuple[int, int, int | None], int] = {}
        self.steps = TracedSteps(
            workload=self._asked,
            plan=self._plan,
            model=self._model,
            dispatcher=self._dispatcher,
            recorder=self._recorder,
            autocast=self._torch.autocast,
            composites=self._torch.composites,
            on_new_shapes=self._forget_traces,
        )
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
        with random_weights(self._recorder.note), self._torch.active():
            gc.freeze()  # torch's modules are many objects, which no collection needs to visit
            yield

    @property
    def workload(self) -> Workload:
        """What is trained."""
        return self._model.loaded.workload

    @property
    def class_name(self) -> str:
        """Name of the model's class."""
        return self._model.loaded.class_name

    @property
    def optimizer(self) -> str | None:
        """Classes of the optimizers of the steps so far; None in inference."""
        return ", ".join(self._model.loaded.own_optimizers) or self._model.optimizer

    @property
    def parameters(self) -> int:
        """Number of parameters; shared ones count once."""
        return self._model.loaded.parameter_count()

    @property
    def rank(self) -> int | None:
        """The rank that is traced; None where one GPU trains."""
        return self._model.loaded.rank

    @property
    def gradient_bytes(self) -> int:
        """Size of the gradients of all parameters that are trained, bytes."""
        return self._model.loaded.gradient_bytes()

    @property
    def weights_dtype(self) -> str | None:
        """Dtype of the parameters, where it is not float32 (see `results.PrecisionResult`)."""
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
    def sizes_follow(self) -> bool:
        """Whether traces of other batch sizes follow from those that were made."""
        is_alike = self._model.is_loaded and not self._model.loaded.variation.is_there
        return is_alike and any(traces.scale for traces in self._traces.values())

    @property
    def random_places(self) -> tuple[str, ...]:
        """Where in the user's code random numbers are drawn that decide how large a step is."""
        return self.steps.largest.places

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
        most_entries: int | None = None,
    ) -> Program:
        """Return the program of a trial.

        Args:
            batch_size: number of samples.
            steps: optimizer steps.
            exact: trace this very batch size, whether it follows from others or not.
            enough: steps after which a trace that takes long ends; None: it has all steps.
            sources: list that gets the source of each block (see `program_of`).
            most_entries: how many entries the first step of the first trace may have; None: any number.

        Raises:
            TimeLimitError: it has more.
            UntraceableError: an operator needs values, or has no model.
            BsfindError: the user's code failed.
        """
        traces, trial = self._traces[steps, enough], (batch_size, steps, enough)
        if exact and trial in self._shortened:
            self._shortened.discard(trial)
            traces.forget(batch_size)
        entries, is_traced = traces.at(
            batch_size,
            lambda: self._traced(
                batch_size,
                steps,
                enough,
                may_shorten=not exact,
                most_entries=None if self._first_entries else most_entries,
            ),
            exact=exact or self._model.loaded.variation.is_there,
        )
        gpu = dataclasses.replace(gpu_as_set(self._gpu), is_cautious=self.is_cautious)
        program = program_of(self._model.load_entries, entries, gpu, sources)
        program.traced_steps = len(program.step_ends) if is_traced else 0
        program.batches = self._variations.get(trial)
        follows_short = not is_traced and len(program.step_ends) < steps
        program.repeats = trial in self._shortened or (follows_short and program.batches is None)
        is_whole = is_traced and not program.repeats
        if is_whole and self._repetition.learn(program, self._first_entries[trial]):
            self._forget_shortened()
        return program

    def program_with_old_buckets(
        self, batch_size: int, steps: int, *, enough: int | None = None
    ) -> Program | None:
        """Return the program of a trial in which DDP's first buckets stay for as long as they may.

        See `distributed.old_buckets`; the arguments are those of `program`.

        Returns:
            The program; None if buckets are made once.
        """
        sources: list[Source] = []
        program = self.program(batch_size, steps, enough=enough, sources=sources)
        summed = self._recorder.summed
        first = {
            number
            for number, source in enumerate(sources)
            if source.block in summed and not source.is_trial
        }
        return with_old_buckets(program, first)

    def _traced(
        self,
        batch_size: int,
        steps: int,
        enough: int | None,
        *,
        may_shorten: bool,
        most_entries: int | None,
    ) -> Sequence[Entry]:
        entries = self.steps.trace(
            *(batch_size, steps, enough or steps, self._repetition if may_shorten else None),
            most_entries=most_entries,
        )
        trial = (batch_size, steps, enough)
        self._first_entries[trial] = self.steps.first_entries
        if self.steps.is_shortened:
            self._shortened.add(trial)
        self._variations[trial] = self._model.loaded.variation.found()
        return entries

    def _forget_shortened(self) -> None:
        """Forget traces that ended before their steps repeated, and what followed from them."""
        for batch_size, steps, enough in self._shortened:
            self._traces[steps, enough].forget(batch_size)
        self._shortened.clear()

    def _forget_traces(self) -> None:
        self._traces.clear()
        self._shortened.clear()
        self._repetition = Repetition()

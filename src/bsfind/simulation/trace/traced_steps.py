"""The training steps of a trial on the simulated GPU: traced, or run with values."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from time import process_time

import torch

from bsfind.errors import BsfindError, TargetError, TimeLimitError
from bsfind.failures.exceptions import plain
from bsfind.failures.leaks import is_freed_at_the_end, note_of_epoch
from bsfind.settings import Workload
from bsfind.simulation.trace.cuda_paths.autocast import AutocastCuda
from bsfind.simulation.trace.cuda_paths.composites import CudaComposites
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.masquerade.paged_memory import paged_memory
from bsfind.simulation.trace.program import StepOperators, operators_of
from bsfind.simulation.trace.recorder import Entry, Recorder, TooManyEntriesError
from bsfind.simulation.trace.refusals import report_of
from bsfind.simulation.trace.repetition import Repetition
from bsfind.simulation.trace.traced_model import TracedModel
from bsfind.simulation.trace.value_shapes import ValuesNeededError, ValueStep
from bsfind.simulation.trace.value_steps import SHORTER, run_with_values
from bsfind.simulation.trace.values import TooMuchComputedError
from bsfind.trial import Leak
from bsfind.workload.delivery import Extents
from bsfind.workload.precision import PrecisionPlan, precision_plan
from bsfind.workload.randomness import LargestStep, StepSize
from bsfind.workload.step import LoadedWorkload
from bsfind.workload.training import TrainingSteps

_LONG_S = 4.0
"""Processor time of a trace that takes long, seconds."""

_STEPS_OF_EPOCH = 5
"""Steps of an epoch that is traced to see what its end frees."""


class TracedSteps:
    """Runs the training steps of trials, and has what they do recorded.

    Args:
        workload: what to train, as it was asked for.
        plan: the precision.
        model: the model on the simulated GPU.
        dispatcher: runs the operators.
        recorder: records what they allocate.
        autocast: the casts of weights, which are forgotten after each trial.
        composites: what compound operators keep, likewise.
        on_new_shapes: called when steps with values have run: what was traced before is out of date.

    Attributes:
        largest: decides on random numbers.
        operators: what the step that was traced last consists of; None before the first.
        first_entries: how many entries the first step of the last trace has.
        is_shortened: whether the last trace ended early, since its last step is known to repeat.
    """

    def __init__(
        self,
        *,
        workload: Workload,
        plan: PrecisionPlan,
        model: TracedModel,
        dispatcher: Dispatcher,
        recorder: Recorder,
        autocast: AutocastCuda,
        composites: CudaComposites,
        on_new_shapes: Callable[[], None],
    ) -> None:
        self._asked = workload
        self._plan = plan
        self._model = model
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._observer = recorder.observer
        self._shapes = dispatcher.shapes
        self._autocast = autocast
        self._composites = composites
        self._on_new_shapes = on_new_shapes
        self._entries: list[Entry] = []
        # Sizes hardly depend on the precision, and the CPU is fast in float32.
        self._plans_with_values = [plan]
        if not self._shapes.steps and plan.name != "fp32":
            self._plans_with_values.append(precision_plan("fp32"))
        self.largest = LargestStep()
        self.operators: StepOperators | None = None
        self.first_entries = 0
        self.is_shortened = False
        self._repetition: Repetition | None = None

    def trace(
        self,
        batch_size: int,
        steps: int,
        enough: int,
        repetition: Repetition | None = None,
        *,
        most_entries: int | None = None,
    ) -> Sequence[Entry]:
        """Trace a trial; where its shapes depend on values, after steps with values.

        Args:
            batch_size: number of samples.
            steps: optimizer steps.
            enough: steps after which a trace that takes long ends.
            repetition: how soon the steps of other traces repeat; None: all steps are traced.
            most_entries: how many entries its first step may have; None: any number.

        Raises:
            TimeLimitError: its first step has more.
            UntraceableError: an operator needs values, or has no model.
            BsfindError: the user's code failed.
        """
        self._repetition = repetition
        while True:
            self._recorder.most_entries = most_entries
            try:
                with contextlib.suppress(ValuesNeededError):
                    return self._traced(batch_size, steps, enough)
            except TooManyEntriesError:
                raise _takes_too_long(most_entries or 0) from None
            finally:
                self._recorder.most_entries = None
            self._run_with_values(self._plans_with_values.pop())
            self._on_new_shapes()

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
            with self.largest.searched(self._asked.samples(batch_size)):
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

    def _run_with_values(self, plan: PrecisionPlan) -> None:
        notes, values = dict(self._recorder.notes), self._dispatcher.values

        def run(value_step: ValueStep) -> None:
            batch_size = value_step.batch_size

            def step() -> bool:
                loaded = self._model.loaded
                loaded.take_sequences_of(value_step.length)
                if value_step.most_computed is not None:
                    values.most_computed = values.computed_bytes + value_step.most_computed
                loaded.try_labels(batch_size, self._shapes.begin)
                runner = TrainingSteps(loaded, lambda: None)
                with self.largest.searched(batch_size, value_step.seed):
                    first, before = len(self._recorder.entries), values.computed_bytes
                    self._shapes.begin(batch_size)
                    runner.run(batch_size)
                    value_step.nbytes = self._recorder.size_since(first)[0]
                    value_step.computed_bytes = values.computed_bytes - before
                    if loaded.workload.with_eval:
                        runner.evaluate(batch_size)
                return True

            self._model.loaded.deliveries.begin()
            try:
                self._running(batch_size, step)
            finally:
                values.most_computed = None

        try:
            with self._model.with_values(plan) as load:
                run_with_values(
                    *(self._shapes, load, run),
                    lambda: self._model.loaded.shorter_sequences(SHORTER),
                )
        except BsfindError as error:
            self._shapes.failure = error.without_frames()
        self._recorder.notes = notes

    def _traced(self, batch_size: int, steps: int, enough: int) -> Sequence[Entry]:
        self._model.loaded.deliveries.begin()
        self._try_labels(batch_size)
        try:
            self._trace(batch_size, steps, enough)
        except TargetError:
            self._check_delivery(batch_size)  # it may be the reason
            raise
        if self._check_delivery(batch_size):  # what the observer has seen last is of another size
            self._trace(batch_size, steps, enough)
        self.operators = operators_of(self._entries)
        return self._entries

    def _try_labels(self, batch_size: int) -> None:
        """Let labels be tried, first without steps with values: no size decides which it takes."""

        def run() -> bool:
            return self._model.loaded.try_labels(batch_size, self._shapes.begin)

        shapes, notes = self._shapes, dict(self._recorder.notes)
        shapes.may_guess, shapes.has_guessed = True, False
        try:
            self._running(batch_size, run)
        except TargetError:
            if not shapes.has_guessed:
                raise
        finally:
            shapes.may_guess = False
        choice = self._model.loaded.choice
        if shapes.has_guessed and not choice.takes_labels:
            choice.forget_labels()
            self._recorder.notes = notes
            self._running(batch_size, run)

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
        except (
            *(KeyboardInterrupt, ValuesNeededError),
            *(TooManyEntriesError, TooMuchComputedError),
        ):
            raise
        except BaseException as raised:
            error = plain(raised)
            raise report_of(
                error,
                doing=f"{self._asked.searched} {batch_size} in {self._plan.name}",
                inputs=self._model.loaded.last_batch if self._model.is_loaded else None,
            ) from error

    def _repeats(self, runner: TrainingSteps, wanted: int) -> bool:
        """Tell whether the last step of a trace that wants more is known to repeat."""
        if self._repetition is None:
            return False
        loaded = self._model.loaded
        enough = self._repetition.enough(self.first_entries, has_tail=loaded.workload.with_eval)
        if enough is None or loaded.variation.is_there or enough >= wanted:
            return False
        self.is_shortened = not runner.wants_more(enough, is_long=True)
        return self.is_shortened

    def _run(self, batch_size: int, steps: int, enough: int) -> bool:
        """Run the steps; False if they have to be run anew (see `LargestStep.decide`)."""
        recorder, loaded, largest = self._recorder, self._model.loaded, self.largest

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
        self.first_entries, self.is_shortened = 0, False
        begin = process_time()
        with largest.searched(self._asked.samples(batch_size)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while True:
                is_long = process_time() >= begin + _LONG_S
                wanted = enough if is_long else steps
                if not runner.wants_more(wanted, is_long=is_long):
                    break
                if self._repeats(runner, wanted):
                    break
                recorder.mark("forward_begin")
                self._shapes.begin(batch_size)
                runner.run(batch_size)
                recorder.step_is_over(runner.gradient_bytes, is_warm_up=runner.is_warm_up)
                self.first_entries = self.first_entries or len(recorder.entries)
                recorder.most_entries = None  # further steps are as long
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


def _takes_too_long(most_entries: int) -> TimeLimitError:
    return TimeLimitError(
        f"a step allocates and releases memory more than {most_entries:,} times, as a loop over many time "
        "steps in Python does: tracing it at several sizes would take minutes",
        hint="`check --batch-size` traces one size, however long that takes; shorter sequences "
        "(`--seq-len`) are searched",
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread: the values of a trace are few, and other threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

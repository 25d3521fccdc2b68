"""The model on the simulated GPU: built, set back to its state after loading, or built again."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Sequence

import torch

from bsfind.errors import TargetError, UntraceableError, UsageError
from bsfind.failures.exceptions import plain
from bsfind.settings import Workload
from bsfind.simulation.trace.building import Builder, FixedMemory, fixed_memory_of
from bsfind.simulation.trace.dispatch import Dispatcher
from bsfind.simulation.trace.recorder import Entry, Recorder, clear_function_caches
from bsfind.simulation.trace.refusals import report_of
from bsfind.simulation.trace.values import KnownValues
from bsfind.units import format_bytes
from bsfind.workload.delivery import Deliveries
from bsfind.workload.libraries.downloads import is_no_network
from bsfind.workload.libraries.targets import find_target
from bsfind.workload.loss_choice import LossChoice
from bsfind.workload.model import build_model, keyword_arguments
from bsfind.workload.precision import PrecisionPlan
from bsfind.workload.randomness import reproducible_building
from bsfind.workload.state import State
from bsfind.workload.step import LoadedWorkload
from bsfind.workload.variation import Variation

_DEVICE = torch.device("cuda", 0)


class TracedModel:
    """The model of a workload on the simulated GPU.

    Args:
        workload: what to train.
        plan: the precision.
        dispatcher: runs the operators.
        recorder: records what they allocate.

    Attributes:
        optimizer: class of the optimizer; None in inference, and before `load`.
        load_entries: what was recorded until the model was on the GPU.
    """

    def __init__(
        self, workload: Workload, plan: PrecisionPlan, dispatcher: Dispatcher, recorder: Recorder
    ) -> None:
        self._workload = workload
        self._plan = plan
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._builder = Builder(dispatcher)
        self._loaded: LoadedWorkload | None = None
        self._state: State | None = None
        self._choice: LossChoice | None = None
        self._deliveries: Deliveries | None = None
        self._variation: Variation | None = None
        self._first_block = 0
        self._seed: int | None = None
        self.optimizer: str | None = None
        self.load_entries: Sequence[Entry] = ()

    @contextlib.contextmanager
    def with_values(self, plan: PrecisionPlan) -> Iterator[Callable[[int], None]]:
        """Let the model have values, in the host's memory; afterwards, load it without them again.

        Args:
            plan: the precision while inside.

        Yields:
            A function that loads the model with weights of a seed; it raises UntraceableError if the
            host has not enough memory, and BsfindError if the user's code fails.
        """
        before = self._plan, self._choice
        self._plan = plan
        self._choice = None if before[1] is None else before[1].for_plan(plan.model_dtype)
        self._dispatcher.values.keeps_all = True

        def load(seed: int) -> None:
            self._seed = seed
            self.load()

        try:
            with self._dispatcher.values.none_of_optimizers():
                yield load
        finally:
            self._dispatcher.values.keeps_all = False
            self._seed = None
            self._plan, self._choice = before
            self.load()

    @property
    def loaded(self) -> LoadedWorkload:
        """The workload with the model on the GPU."""
        assert self._loaded is not None
        return self._loaded

    @property
    def is_loaded(self) -> bool:
        """Whether the model is on the GPU: not while it is built."""
        return self._loaded is not None

    def close(self) -> None:
        """Drop the model."""
        self._loaded = self._state = None

    def load(self) -> None:
        """Build the model and move it to the simulated GPU.

        Raises:
            UntraceableError: building it needs what cannot be predicted.
            BsfindError: the user's code failed.
        """
        try:
            if self._seed is not None:
                self._start_over()
                building = self._builder.in_memory("shapes in its step depend on values")
                with building, reproducible_building(self._seed):
                    self._loaded = self._built()
            elif (why := self._failure_without_memory()) is not None:
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
        except BaseException as raised:  # `sys.exit`, say
            error = plain(raised)
            raise report_of(error, doing="building the model") from error
        self._make_first_optimizer()
        self._recorder.observer.model_is_loaded(self.loaded.model)
        gc.collect()
        gc.freeze()
        loaded = self.loaded
        self._state = State(
            loaded.model, KnownValues(self._dispatcher.values, _DEVICE), loaded.functions
        )
        self.load_entries = self._recorder.entries
        self._first_block = self._recorder.count

    def _make_first_optimizer(self) -> None:
        """Make the optimizer once: some have state from the start, which a load needs room for."""
        if self._workload.mode != "train":
            return
        try:
            self.optimizer = self.loaded.name_optimizers()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = plain(raised)
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
        except (TargetError, UsageError):
            raise
        except Exception as error:  # not kept: its frames hold the model
            if is_no_network(error):  # nor is there one for the next attempt
                raise
            return report_of(plain(error), doing="building the model").message
        return None

    def _built(self) -> LoadedWorkload:
        workload = self._workload
        model = build_model(workload.target, keyword_arguments(workload.model_args))
        if model is find_target(workload.target):
            model = copy.deepcopy(model)  # the next precision finds it on the host, as now
        self._builder.take_memory(model)
        loaded = LoadedWorkload(
            *(workload, self._plan, _DEVICE, model),
            *(self._choice, self._deliveries, self._variation),
        )
        self._choice, self._deliveries = loaded.choice, loaded.deliveries
        self._variation = loaded.variation
        return loaded

    def _start_over(self) -> None:
        """Forget the model, and all that it had on the GPU but what the user's code keeps."""
        self._loaded = self._state = None
        if not self._dispatcher.rewind(0):
            self.collect()
            self._dispatcher.rewind(0, keeping=True)

    @staticmethod
    def collect() -> None:
        """Free what nothing but cycles and the caches of functions hold."""
        gc.unfreeze()
        gc.collect()
        if clear_function_caches():
            gc.collect()

    def _forget_trial(self) -> bool:
        """Forget the last trial; False: it left something in the model."""
        if self._state is None or not self._state.restore():
            return False
        if self._dispatcher.rewind(self._first_block):
            return True
        gc.unfreeze()
        cleared = clear_function_caches()
        if cleared:
            gc.collect()
        gc.freeze()
        return cleared and self._dispatcher.rewind(self._first_block)

    def be_fresh(self) -> None:
        """Load the model again if it keeps anything of what ran before: the next would lack it."""
        if not self._forget_trial():
            self.load()
            self._dispatcher.rewind(self._first_block)

    def fixed_memory(self) -> FixedMemory:
        """Return what the step takes at any batch size. No trial may be going on."""
        try:
            return fixed_memory_of(self.loaded, self.optimizer)
        finally:
            self.loaded.clear_gradients()
            gc.collect()
            self._dispatcher.rewind(self._first_block)

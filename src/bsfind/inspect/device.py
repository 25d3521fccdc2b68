"""The simulated device of `bsfind inspect`: says what the memory of one trial is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsfind.devices.base import DoesNotFit
from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import BsfindError
from bsfind.inspect.compose import compose
from bsfind.inspect.records import PrecisionInspection
from bsfind.records import ModelInfo
from bsfind.settings import Workload
from bsfind.simulation.allocator.caching_allocator import CachingAllocator
from bsfind.simulation.allocator.device_memory import DeviceMemory

if TYPE_CHECKING:
    from bsfind.inspect.attribution import AttributingRecorder
    from bsfind.simulation.trace.program import Source
    from bsfind.simulation.trace.tracer import Tracer


_PLENTY = 1 << 60


class InspectingDevice(SimulatedDevice):
    """A simulated GPU whose tracer notes who allocates. One batch size for each `load`."""

    _recorder: AttributingRecorder | None = None
    _trains = True

    def load(self, workload: Workload, precision: str) -> ModelInfo:
        """Build the model; one that does not fit is no obstacle, since `inspect` tells why."""
        self._trains = workload.mode == "train"
        try:
            return super().load(workload, precision)
        except DoesNotFit:
            assert self._tracer is not None
            allocator = CachingAllocator(DeviceMemory(_PLENTY))
            self._tracer.model_program().load(allocator)
            return ModelInfo(
                class_name=self._tracer.class_name,
                parameters=self._tracer.parameters,
                optimizer=self._tracer.optimizer,
                model_bytes=allocator.allocated_bytes,
                weights_dtype=self._tracer.weights_dtype,
            )

    def _new_tracer(self, workload: Workload, precision: str) -> Tracer:
        from bsfind.inspect.attribution import AttributingRecorder
        from bsfind.simulation.trace.tracer import Tracer

        self._recorder = AttributingRecorder()
        return Tracer(
            workload,
            precision,
            self._target(precision),
            self._seen_by_user_code(),
            self._recorder,
        )

    def inspect(self, batch_size: int, steps: int) -> PrecisionInspection:
        """Trace a trial and return what its memory is made of.

        Args:
            batch_size: samples in a (micro-)batch.
            steps: optimizer steps.

        Raises:
            BsfindError: the user's code does not work, or cannot be traced.
        """
        tracer, recorder = self._tracer, self._recorder
        if tracer is None or recorder is None:
            raise RuntimeError("inspect before load, or a second time after it")
        parameters, optimizer = tracer.parameters, tracer.optimizer
        weights_dtype = tracer.weights_dtype
        sources: list[Source] = []
        try:
            program = tracer.program(batch_size, steps, exact=True, sources=sources)
        except BsfindError as error:
            message = self._refused(error, batch_size).message
            if self.refusal is not None:
                raise self.refusal from error
            return PrecisionInspection(
                precision=self._precision,
                status="refused",
                parameters=parameters,
                optimizer=optimizer,
                message=message,
                weights_dtype=weights_dtype,
            )
        self._recorder = None  # it knows the owners of the last trace alone
        composition = compose(
            recorder.course(program, sources, trains=self._trains), self._allocator()
        )
        failed = composition.failed
        return PrecisionInspection(
            precision=self._precision,
            status="fits" if failed is None else "does_not_fit",
            parameters=parameters,
            optimizer=optimizer,
            composition=composition,
            message=None if failed is None else failed.message,
            weights_dtype=weights_dtype,
        )

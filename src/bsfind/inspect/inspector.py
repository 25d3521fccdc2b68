"""Runs `bsfind inspect`: one batch size, precision after precision, on a simulated GPU."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from bsfind import __version__
from bsfind.errors import NoDeviceError, NoGpuError
from bsfind.inspect.inspection import InspectionReport, PrecisionInspection
from bsfind.option_fields import arguments_of
from bsfind.records import Assumption, DeviceInfo, ReportWarning
from bsfind.search.assumptions import (
    assumption_of_output,
    assumptions_of,
    stand_in_warning,
    with_proposed_inputs,
)
from bsfind.search.events import Events, Progress
from bsfind.search.predict_first import simulated_counterpart
from bsfind.search.time_budget import TimeBudget
from bsfind.search.variants import precisions_of, unsupported
from bsfind.settings import DeviceChoice, Settings
from bsfind.worker.client import Worker


class Inspector:
    """Finds out the composition of memory at the batch size of the settings.

    On a machine with a GPU, the same GPU of the catalogue is simulated: a real GPU tells how much memory
    is allocated, but not by what.

    Args:
        settings: what to inspect, with a batch size.
        command: the command line, for the report.
        events: told what goes on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] = (),
        events: Events | None = None,
    ) -> None:
        if settings.batch_size is None:
            raise ValueError("there is no batch size to inspect")
        self._settings = settings
        self._batch_size = settings.batch_size
        self._command = tuple(command)
        self._events = events or Events()
        self._clock = TimeBudget(settings.limits.trial_timeout_s, None)
        self._warnings: list[ReportWarning] = []
        self._class_name: str | None = None
        self._assumptions: dict[Assumption, None] = {}

    def run(self) -> InspectionReport:
        """Inspect every precision.

        Raises:
            NoDeviceError: there is no GPU to simulate.
            BsfindError: the user's code failed, or took too long.
        """
        choice, real = self._choice()
        with Worker(self._events.output, self._warn) as worker:
            device = worker.open(choice, self._clock.for_start())
            results = tuple(
                self._inspect(worker, device, name)
                for name in precisions_of(self._settings, device)
            )
        settings = with_proposed_inputs(self._settings, worker.inputs)
        settings = dataclasses.replace(settings, device=choice)
        return InspectionReport(
            bsfind_version=__version__,
            command=self._command,
            reproduce=shlex.join(["bsfind", "inspect", *arguments_of(settings)[1:]]),
            device=device,
            stands_for=real.name if real else None,
            workload=settings.workload.to_json(),
            class_name=self._class_name,
            batch_size=self._batch_size,
            steps=settings.limits.steps,
            results=results,
            assumptions=assumptions_of(
                settings,
                device,
                next((result.optimizer for result in results if result.optimizer), None),
                list(self._assumptions),
            ),
            warnings=tuple(self._warnings),
        )

    def _choice(self) -> tuple[DeviceChoice, DeviceInfo | None]:
        """Return the GPU to simulate, and the GPU of this machine that it replaces, if it does."""
        choice = self._settings.device
        if choice.is_simulated:
            return choice, None
        try:
            with Worker(self._events.output, self._warn) as worker:
                real = worker.open(choice, self._clock.for_start())
        except NoGpuError as error:
            other = self._events.no_gpu(error) if choice.device == "auto" else None
            if other is None:
                raise
            return other, None
        counterpart = simulated_counterpart(real)
        if counterpart is None:
            raise NoDeviceError(
                f"{real.name} is not a GPU that bsfind can simulate, which is how it inspects",
                hint="name one that is like it with `--gpu` (`bsfind gpus` lists them)",
            )
        return counterpart, real

    def _inspect(self, worker: Worker, device: DeviceInfo, precision: str) -> PrecisionInspection:
        why_not = unsupported(precision, device)
        if why_not is not None:
            return PrecisionInspection(precision=precision, status="unsupported", message=why_not)
        self._events.progress(Progress(precision=precision, doing="loading"))
        self._class_name = worker.load_to_inspect(
            self._settings.workload, precision, self._clock.for_start()
        )
        self._events.progress(
            Progress(precision=precision, doing="inspecting", batch_size=self._batch_size)
        )
        inspected = worker.inspect(
            self._batch_size, self._settings.limits.steps, self._clock.for_trial()
        )
        self._assumptions.update(dict.fromkeys(worker.assumptions))
        peak = inspected.composition.allocated_bytes if inspected.composition else None
        told = assumption_of_output(worker.output, self._batch_size, peak)
        if told is not None and not any(made.what == told.what for made in self._assumptions):
            self._assumptions[told] = None
        warning = stand_in_warning(
            worker.output, self._batch_size, peak, assumptions=self._assumptions
        )
        if warning is not None and not any(w.code == warning.code for w in self._warnings):
            self._warnings.append(warning)
        return inspected

    def _warn(self, warning: ReportWarning) -> None:
        if warning not in self._warnings:
            self._warnings.append(warning)

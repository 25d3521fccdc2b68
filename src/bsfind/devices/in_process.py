"""A simulated GPU for the process that this module is loaded in, which somebody else's program runs in.

The probe of a launched command opens it when torch has been imported, and the program goes on as on a machine
with that GPU: its tensors on `cuda` are traced, those on the CPU are what they are.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from bsfind.devices.prediction_limits import setting_warnings
from bsfind.devices.simulated import SimulatedDevice
from bsfind.errors import UntraceableError, UsageError
from bsfind.settings import DeviceChoice
from bsfind.simulation.trace.live import LiveMemory, LiveRecorder
from bsfind.simulation.trace.masquerade.programs import ALONE, SEVERAL, programs_calls
from bsfind.simulation.trace.program import operators_of
from bsfind.simulation.trace.simulated_torch import SimulatedTorch


class GpuOfProcess:
    """The simulated GPU of this process.

    Args:
        choice: fields of a `DeviceChoice`.
        limit_bytes: what the allocator may reserve; None: what there is.
        on_first_use: called before the first allocation.

    Raises:
        BsfindError: this torch cannot be traced, or the environment is not valid.
    """

    def __init__(
        self, choice: dict[str, Any], limit_bytes: int | None, on_first_use: Callable[[], object]
    ) -> None:
        self._device = SimulatedDevice(DeviceChoice.from_json(choice))
        if limit_bytes is not None:
            self._device.limit_memory(limit_bytes)
        told = self._device.describe()
        gpu = self._device.gpu.spec("fp32")
        self._memory = LiveMemory(
            *(gpu, self._device.new_allocator()),
            free_bytes=told.free_bytes,
            total_bytes=told.total_bytes,
            on_first_use=on_first_use,
        )
        self._recorder = LiveRecorder(self._memory)
        self._torch = SimulatedTorch(gpu, self._device.gpu.properties, self._recorder)
        self._torch.dispatcher.reads.is_repeatable = False
        self._open = contextlib.ExitStack()

    def open(self) -> None:
        """Let the torch of this thread run on it, until `close`.

        Raises:
            UsageError: this process is one of several ranks.
        """
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError(SEVERAL, hint=ALONE)
        simulated = self._torch
        self._open.enter_context(simulated.active(self._memory.answers()))
        self._open.enter_context(
            programs_calls(simulated.dispatcher.is_on_gpu, simulated.active_in_thread)
        )
        self._open.enter_context(self._noting_refusals())
        self._memory.is_open = True
        os.register_at_fork(after_in_child=simulated.leave)

    @contextlib.contextmanager
    def _noting_refusals(self) -> Iterator[None]:
        """Note what cannot be traced, where the program catches the error and goes on."""
        begin = UntraceableError.__init__

        def made(error: UntraceableError, message: str, **more: Any) -> None:
            begin(error, message, **more)
            self._recorder.note(f"untraceable:{message}", f"{message}; the command went on without")

        with mock.patch.multiple(UntraceableError, __init__=made):
            yield

    @property
    def convolution_workspaces(self) -> str | None:
        """What the workspaces of convolutions rest on (see `base.Device.convolution_workspaces`)."""
        from bsfind.simulation.kernels.convolution_workspace import workspaces_source

        return workspaces_source(self._device.gpu.spec("fp32"))

    def close(self) -> None:
        """Give torch back its own operators."""
        self._open.close()

    def warnings(self, *, has_failed: bool) -> list[dict[str, str | None]]:
        """Return what the reader of the prediction must know: codes, messages and hints.

        Args:
            has_failed: whether an exception has ended the program.
        """
        self._torch.dispatcher.reads.note_lines(has_failed=has_failed)
        notes = self._recorder.notes.items()
        found = self._device.take_warnings()
        operators = operators_of(self._memory.calls)
        return [
            *({"code": c.partition(":")[0], "message": text, "hint": None} for c, text in notes),
            *(
                {"code": each.code, "message": each.message, "hint": each.hint}
                for each in (*found, *setting_warnings(operators, self._device.asks_cudnn))
            ),
        ]

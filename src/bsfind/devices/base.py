"""The interface between the search and a device: `Device`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bsfind.errors import BsfindError
from bsfind.failures.leaks import leak_message, steady_retries
from bsfind.failures.memory_watch import MemoryLeft
from bsfind.records import (
    Assumption,
    DeviceInfo,
    Leak,
    ModelInfo,
    ModelKind,
    OutputMemory,
    ReportWarning,
    Trial,
)
from bsfind.settings import Workload
from bsfind.simulation.allocator.recording import Recording


class DoesNotFit(Exception):  # noqa: N818 (an answer, not an error)
    """The model alone does not fit on the device; the text says how much memory it needs."""


class Device(Protocol):
    """Runs trials of one workload in one precision, in the worker process."""

    def describe(self) -> DeviceInfo:
        """Return what the device is, and how much of its memory the search may use."""
        ...

    def load(self, workload: Workload, precision: str) -> ModelInfo:
        """Build the model and put it on the device.

        Raises:
            DoesNotFit: out of memory.
            TargetError: the workload names something that does not exist or does not work.
        """
        ...

    def limit_memory(self, nbytes: int) -> None:
        """Let the allocator of later trials reserve at most `nbytes` of the device."""
        ...

    def run_trial(self, batch_size: int, steps: int, *, record: bool = True) -> Trial:
        """Try one batch size.

        Out of memory is an answer (status `oom`), not an exception. So is an error of the user's code
        that another batch size may not raise (`error_kind` `refused`).

        Args:
            batch_size: samples in a (micro-)batch.
            steps: optimizer steps.
            record: whether `recording` is wanted afterwards, which costs some time.

        Raises:
            TargetError: the user's code failed, and would at every batch size.
        """
        ...

    def memory_left(self) -> MemoryLeft | None:
        """Return how much of the device's memory PyTorch can use now; None if that cannot change."""
        ...

    def take_warnings(self) -> list[ReportWarning]:
        """Return the warnings that were not returned before."""
        ...

    @property
    def assumptions(self) -> Sequence[Assumption]:
        """What was chosen for the steps of the loaded workload so far."""
        ...

    @property
    def model_kind(self) -> ModelKind | None:
        """The kind of model by the operators of the last trial; None if they are not known."""
        ...

    @property
    def output(self) -> OutputMemory | None:
        """What the model returned in the steps so far; None where bsfind does not make the loss."""
        ...

    @property
    def is_clean(self) -> bool:
        """Whether the last trial left no memory behind; else the next needs a new process."""
        ...

    @property
    def refusal(self) -> BsfindError | None:
        """What the model's code raised if it refused the batch size of the last trial; else None."""
        ...

    @property
    def recording(self) -> Recording | None:
        """The last trial's requests to the allocator; None if it failed or was not recorded."""
        ...


def finished_trial(
    batch_size: int,
    *,
    steps: int,
    peak_allocated_bytes: int,
    peak_reserved_bytes: int,
    resident_bytes: int,
    activation_bytes: int,
    retries: Sequence[int],
    peaks_by_step: Sequence[int],
    leak: Leak | None,
    step_time_s: float | None = None,
    samples_per_s: float | None = None,
) -> Trial:
    """Return the trial of a batch size whose steps all ran: status `ok`, or `error` if memory leaks.

    Args:
        batch_size: samples in a (micro-)batch.
        steps: optimizer steps that ran.
        peak_allocated_bytes: peak allocated of all steps.
        peak_reserved_bytes: peak reserved of all steps.
        resident_bytes: bytes that are allocated after the last step.
        activation_bytes: the most bytes that a forward pass left allocated.
        retries: number of allocation retries until the end of each step.
        peaks_by_step: peak allocated of each step, bytes.
        leak: the memory that every step leaves allocated; None: there is no leak.
        step_time_s: time of one step, if it was measured.
        samples_per_s: samples per second, if times were measured.
    """
    return Trial(
        batch_size=batch_size,
        status="ok" if leak is None else "error",
        error_kind=None if leak is None else "leak",
        peak_allocated_bytes=peak_allocated_bytes,
        peak_reserved_bytes=peak_reserved_bytes,
        resident_bytes=resident_bytes,
        activation_bytes=activation_bytes,
        num_alloc_retries=retries[-1],
        steady_alloc_retries=steady_retries(retries),
        peaks_by_step=tuple(peaks_by_step),
        leak=leak,
        steps=steps,
        step_time_s=step_time_s,
        samples_per_s=samples_per_s,
        message=None if leak is None else leak_message(leak),
    )

"""The seam between the search and whatever answers its questions: `Device`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bsfind.errors import BsfindError
from bsfind.failures.memory_watch import MemoryLeft
from bsfind.records import (
    Assumption,
    DeviceInfo,
    ModelInfo,
    ModelKind,
    OutputMemory,
    ReportWarning,
    Trial,
)
from bsfind.settings import Workload
from bsfind.simulation.allocator.recording import Recording


class DoesNotFit(Exception):  # noqa: N818 (an answer, not an error)
    """The model alone does not fit on the device; the text says what it needed."""


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
        """Let later trials use at most so many bytes of the device."""
        ...

    def run_trial(self, batch_size: int, steps: int, *, record: bool = True) -> Trial:
        """Try one batch size. Out of memory is an answer (status `oom`), never an exception.

        So is an error of the user's code that another batch size may not raise (`error_kind` `refused`).

        Args:
            batch_size: samples in a (micro-)batch.
            steps: optimizer steps.
            record: whether `recording` is wanted afterwards, which costs some time.

        Raises:
            TargetError: the user's code failed, and would at every batch size.
        """
        ...

    def memory_left(self) -> MemoryLeft | None:
        """Return what is left of the device's memory for PyTorch; None if that cannot change."""
        ...

    def take_warnings(self) -> list[ReportWarning]:
        """Return what the reader of the answers must know and has not been told yet."""
        ...

    @property
    def assumptions(self) -> Sequence[Assumption]:
        """What was chosen for the steps of the loaded workload, as far as it is known."""
        ...

    @property
    def model_kind(self) -> ModelKind | None:
        """What the operators of the last trial say of the model; None if they are not known."""
        ...

    @property
    def output(self) -> OutputMemory | None:
        """What the model returned to a loss of bsfind's in the steps so far; None if to none."""
        ...

    @property
    def is_clean(self) -> bool:
        """Whether the last trial left nothing behind: if not, the next needs a new process."""
        ...

    @property
    def refusal(self) -> BsfindError | None:
        """What the model's code raised in the last trial, if it refused the size; None if it did not."""
        ...

    @property
    def recording(self) -> Recording | None:
        """What the last trial asked of the allocator; None if it failed or was not recorded."""
        ...

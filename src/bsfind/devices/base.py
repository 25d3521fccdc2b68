"""The interface between the search and a device: `Device`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from bsfind.errors import BsfindError, ShortBatchError, TargetError
from bsfind.failures.leaks import leak_message, steady_retries
from bsfind.failures.memory_watch import MemoryLeft
from bsfind.inputs import InputSpec
from bsfind.records import (
    Assumption,
    ContextSource,
    DeviceInfo,
    ModelInfo,
    ModelKind,
    OutputMemory,
    ReportWarning,
)
from bsfind.settings import DeviceChoice, Workload
from bsfind.simulation.allocator.recording import Recording
from bsfind.simulation.gpus.nccl_memory import nccl_bytes
from bsfind.trial import BatchVariation, Evaluation, Leak, Trial


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

    def run_trial(
        self, batch_size: int, steps: int, *, record: bool = True, exact: bool = False
    ) -> Trial:
        """Try one batch size.

        Out of memory is an answer (status `oom`), not an exception. So is an error of the user's code
        that another batch size may not raise (`error_kind` `refused`).

        Args:
            batch_size: samples in a (micro-)batch.
            steps: optimizer steps.
            record: whether `recording` is wanted afterwards, which costs some time.
            exact: whether a prediction traces this very batch size: every step, or three of them where
                those of another precision were all traced, and alike.

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
    def inputs(self) -> Sequence[InputSpec]:
        """The inputs of the loaded workload that follow from the model; none if they were described."""
        ...

    @property
    def model_kind(self) -> ModelKind | None:
        """The kind of model by the operators of the last trial; None if they are not known."""
        ...

    @property
    def convolution_workspaces(self) -> str | None:
        """What the workspaces of convolutions rest on; None if they are measured, or there are none."""
        ...

    @property
    def output(self) -> OutputMemory | None:
        """What the model returned in the steps so far; None where bsfind does not make the loss."""
        ...

    @property
    def sizes_follow(self) -> bool:
        """Whether trials of other sizes follow from those that ran, and take no time."""
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


def nccl_memory(choice: DeviceChoice) -> tuple[int | None, ContextSource | None]:
    """Return what NCCL takes of a device on which it does not run, bytes, and where that is from.

    None where no training on several GPUs is asked for.
    """
    if choice.nccl_memory_bytes is not None:
        return choice.nccl_memory_bytes, "given"
    if not choice.communicators:
        return None, None
    return nccl_bytes(choice.communicators), "modelled"


def short_trial(batch_size: int, error: ShortBatchError) -> tuple[Trial, TargetError]:
    """Return the trial of a batch size of which not all samples were delivered, and its `refusal`."""
    trial = Trial(
        batch_size=batch_size,
        status="error",
        error_kind="refused" if error.delivered is None else "short_batch",
        delivered_batch_size=error.delivered,
        message=error.message if error.delivered else error.message.replace("`", ""),
    )
    return trial, TargetError(error.message, hint=error.hint)


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
    traced_steps: int | None = None,
    step_time_s: float | None = None,
    samples_per_s: float | None = None,
    batches: BatchVariation | None = None,
    evaluation: Evaluation | None = None,
    rank: int | None = None,
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
        traced_steps: see `Trial`.
        step_time_s: time of one step, if it was measured.
        samples_per_s: samples per second, if times were measured.
        batches: see `Trial`.
        evaluation: see `Trial`.
        rank: the rank that stands for all; None where there is one GPU.
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
        traced_steps=traced_steps,
        step_time_s=step_time_s,
        samples_per_s=samples_per_s,
        message=None if leak is None else leak_message(leak, steps),
        batches=batches,
        evaluation=evaluation,
        limiting_rank=rank,
    )


def evaluation_that_ran(
    batch_size: int, peaks: tuple[int, int], peaks_of_steps: tuple[int, int]
) -> Evaluation:
    """Return the evaluation pass of a trial.

    Args:
        batch_size: samples in a batch of it.
        peaks: peak reserved and peak allocated of the pass, bytes.
        peaks_of_steps: those of the steps before it.
    """
    reserved, allocated = peaks
    return Evaluation(
        batch_size=batch_size,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=reserved,
        is_decisive=peaks > peaks_of_steps,
    )


def failed_in_evaluation(trial: Trial, batch_size: int) -> Trial:
    """Return a trial that failed, not in its steps but in the evaluation pass, whose batch size is given."""
    evaluation = Evaluation(
        batch_size=batch_size, peak_allocated_bytes=None, peak_reserved_bytes=None, is_decisive=True
    )
    message = f"in the evaluation of {batch_size:,} samples: {trial.message}"
    return dataclasses.replace(trial, evaluation=evaluation, message=message)

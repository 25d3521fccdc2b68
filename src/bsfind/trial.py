"""What one trial found: a batch size in one precision. Sizes are bytes, times seconds; None is unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrialStatus = Literal["ok", "oom", "error", "timeout"]
ErrorKind = Literal["kernel_limit", "refused", "untraceable", "batch_norm", "short_batch", "leak"]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Memory that grows from step to step: no batch size lasts.

    Attributes:
        lasts_steps: after how many steps the device is full, at the batch size of the trial.
    """

    bytes_per_step: int
    lasts_steps: int


@dataclass(frozen=True, kw_only=True)
class BatchVariation:
    """How much the batches of a trial varied in shape, those of its first step aside.

    Attributes:
        batches: how many there were.
        least_elements: elements of all tensors of the smallest.
        most_elements: elements of all tensors of the largest.
    """

    batches: int
    least_elements: int
    most_elements: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation pass after the steps of a trial.

    Attributes:
        batch_size: samples in a batch of it.
        peak_allocated_bytes, peak_reserved_bytes: as of a trial, over the pass; None unless it ran.
        is_decisive: whether it sets the peak of the trial, or what failed was the pass.
    """

    batch_size: int
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    is_decisive: bool


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one of several ranks took in a trial.

    Attributes:
        rank: its number.
        device_index, device_name, device_uuid: the GPU, as the rank numbers and names it.
        total_bytes: memory of that GPU.
        capacity_bytes: what is there of it for the allocator of the rank: all but what contexts, NCCL and
            other processes take.
        peak_allocated_bytes, peak_reserved_bytes, num_alloc_retries: as of a trial.
    """

    rank: int
    device_index: int
    device_name: str
    device_uuid: str
    total_bytes: int
    capacity_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    num_alloc_retries: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One batch size tried in one precision.

    Attributes:
        batch_size: samples in a (micro-)batch.
        status: `ok`, `oom` (out of memory), `error` (see `error_kind`), `timeout`.
        peak_allocated_bytes, peak_reserved_bytes: `torch.cuda.max_memory_allocated()` and
            `max_memory_reserved()` over the trial; None unless ok.
        resident_bytes: allocated between two steps: parameters, buffers, optimizer state.
        activation_bytes: what the forward pass leaves allocated for the backward pass.
        num_alloc_retries: how often the allocator freed its cache in the steps to satisfy a request.
        steady_alloc_retries: how many of these came in the second half of the steps: a longer run would
            go on like that.
        peaks_by_step: peak allocated of each step, in their order.
        error_kind: what the status `error` means: `kernel_limit` (a kernel cannot index so many elements),
            `refused` (the model's code raised; other sizes may run), `untraceable` (the step cannot be
            predicted at this size, though it can at smaller ones), `batch_norm` (it refuses a batch of
            one in training), `short_batch` (fewer samples were delivered: `delivered_batch_size`), `leak`;
            None with any other status.
        steps: optimizer steps that ran.
        traced_steps: of a prediction: how many of the steps were traced at this very batch size; the last
            one stands for those that follow. 0: all follow from traces of other sizes. None: not
            predicted, or refused.
        step_time_s: mean time of the steps after the first (warm-up), synchronised.
        batches: how much the batches of `--batch-fn` varied; None where all are alike.
        evaluation: the evaluation pass of `--with-eval`; None without one, or if the steps failed.
        axis_size: size of the axis, where one is searched at a batch size; None else.
        delivered_axis_size: the largest that the model takes, where `axis_size` is larger.
        ranks: what each rank took, of a launched training in several processes; else nothing.
        limiting_rank: the rank with the least memory left, whose figures those of the trial are, or the one
            that failed; None where one GPU trains.
        fits_with_old_buckets: of a prediction with DDP: whether the device has room for the first buckets
            until the end of the step that replaces them; None where there are none.
    """

    batch_size: int
    status: TrialStatus
    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    resident_bytes: int | None = None
    activation_bytes: int | None = None
    num_alloc_retries: int = 0
    steady_alloc_retries: int = 0
    peaks_by_step: tuple[int, ...] = ()
    error_kind: ErrorKind | None = None
    leak: Leak | None = None
    steps: int = 0
    traced_steps: int | None = None
    step_time_s: float | None = None
    samples_per_s: float | None = None
    message: str | None = None
    delivered_batch_size: int | None = None
    batches: BatchVariation | None = None
    evaluation: Evaluation | None = None
    axis_size: int | None = None
    delivered_axis_size: int | None = None
    ranks: tuple[RankMemory, ...] = ()
    limiting_rank: int | None = None
    fits_with_old_buckets: bool | None = None

    @property
    def size(self) -> int:
        """The number that was searched: the batch size, or the size of the axis."""
        return self.batch_size if self.axis_size is None else self.axis_size

    @property
    def limiting(self) -> RankMemory | None:
        """What the limiting rank took; None where there is one process, or the rank had no GPU."""
        return next((each for each in self.ranks if each.rank == self.limiting_rank), None)

    def limiting_capacity_bytes(self, of_device: int) -> int:
        """Return what the allocator of the process that limits the size may reserve.

        Args:
            of_device: what that of a single process may reserve of the device, bytes.
        """
        return of_device if self.limiting is None else min(of_device, self.limiting.capacity_bytes)

    @property
    def is_at_limit(self) -> bool:
        """Whether less was delivered, or is taken by the model, than was asked for."""
        return self.delivered_batch_size is not None or self.delivered_axis_size is not None

    @property
    def is_refused(self) -> bool:
        """Whether this size does not run, whatever the memory."""
        return self.error_kind in ("refused", "batch_norm", "short_batch")


@dataclass(frozen=True, kw_only=True)
class RefusedSizes:
    """Batch sizes at which the model's own code raised, though others run.

    Attributes:
        batch_sizes: sizes that were tried and refused, in ascending order.
        error: message of the error at the first of them.
        multiple_of: number that every size tried afterwards is a multiple of; None if none was found.
        accepted: form of the sizes that run: `multiples of 4`, `powers of two`; None if none was found.
        axis_sizes: the same of an axis, instead of `batch_sizes`.
    """

    batch_sizes: tuple[int, ...]
    error: str
    multiple_of: int | None
    accepted: str | None
    axis_sizes: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that were refused, of the batch or the axis."""
        return self.batch_sizes or self.axis_sizes

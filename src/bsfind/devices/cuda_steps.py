"""The steps of one trial on a CUDA device, and what its caching allocator did in them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bsfind.devices.base import evaluation_that_ran, finished_trial
from bsfind.failures.leaks import (
    StepMemory,
    held_after,
    is_freed_at_the_end,
    leak_of,
    note_of_epoch,
    steps_differ,
)
from bsfind.simulation.allocator.recording import Recording, numbered_events, streams_of
from bsfind.trial import Evaluation, Leak, Trial
from bsfind.workload.randomness import LargestStep, StepSize
from bsfind.workload.step import LoadedWorkload
from bsfind.workload.training import TrainingSteps


@dataclass
class MeasuredSteps:
    """The allocator's counters in the steps of one trial. It holds no tensor of a step.

    Args:
        loaded: the workload on the device.
        batch_size: samples in a (micro-)batch, or the size of the axis that is searched.

    Attributes:
        step_times: seconds of each step after the first, which warms up; synchronised.
        resident: bytes that are allocated after each step.
        memory: memory of each step, to find leaks.
        peaks_allocated: peak allocated of each step, bytes.
        peaks_reserved: peak reserved of each step, bytes.
        retries: number of allocation retries until the end of each step.
        activation_bytes: the most bytes that a forward pass left allocated.
        completed: optimizer steps that ran and were not skipped by the GradScaler.
        leak: the memory that every step leaves allocated; None: there is no leak.
        differ: whether steps needed different amounts of memory.
        is_evaluating: whether the evaluation pass has begun.
        evaluation: the evaluation pass; None before its end, or without one.
    """

    loaded: LoadedWorkload
    batch_size: int
    step_times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    memory: list[StepMemory] = field(default_factory=list)
    peaks_allocated: list[int] = field(default_factory=list)
    peaks_reserved: list[int] = field(default_factory=list)
    retries: list[int] = field(default_factory=list)
    activation_bytes: int = 0
    completed: int = 0
    leak: Leak | None = None
    differ: bool = False
    is_evaluating: bool = False
    evaluation: Evaluation | None = None

    def run(self, steps: int, capacity_bytes: int, largest: LargestStep) -> bool:
        """Run the steps of a trial, and more where memory seems to leak or steps differ.

        Args:
            steps: optimizer steps.
            capacity_bytes: bytes that the allocator may reserve.
            largest: decides on random numbers.

        Returns:
            False if the trial has to start anew, since it is now known which random numbers make a
            step the largest.

        Raises:
            TargetError: no step updates parameters: GradScaler skips every one, say.
            Exception: out of memory, or whatever the user's code raises.
        """
        with largest.searched(self.loaded.workload.samples(self.batch_size)):
            before = 0
            retries_before = self._counter("num_alloc_retries")

            def on_forward_done() -> None:
                self.activation_bytes = max(self.activation_bytes, self._requested() - before)

            runner = TrainingSteps(self.loaded, on_forward_done)
            while runner.wants_more(steps):
                before = self._requested()
                self._step(runner, retries_before)
                if largest.is_undecided:
                    largest.decide(lambda: self._size_of_step(runner))
                    return False
            if self.loaded.workload.mode == "infer":
                # Nothing is kept for a backward pass: what scales with the batch is the peak.
                self.activation_bytes = self._requested("peak") - before
            runner.check_completed()

            def run_more(count: int) -> list[StepMemory]:
                for _ in range(count):
                    self._step(runner, retries_before)
                return self.memory[-count:]

            left = capacity_bytes - max(self.peaks_allocated)
            leak = leak_of(list(self.memory), run_more, left)
            self.leak = None if leak is not None and self._ends_with_epoch(leak, runner) else leak
            self.differ = steps_differ(self.memory)
            self.completed = runner.completed
            if self.loaded.workload.with_eval and self.leak is None:
                self._evaluate(runner)
            return True

    def _ends_with_epoch(self, leak: Leak, runner: TrainingSteps) -> bool:
        batches = runner.end_epoch()
        if batches is None:
            return False
        at_end = self._requested() - runner.gradient_bytes
        if not is_freed_at_the_end(leak, held_after(self.memory), at_end, batches):
            return False
        code, message = note_of_epoch(leak, batches)
        self.loaded.notes[code] = message
        return True

    def _evaluate(self, runner: TrainingSteps) -> None:
        device, batch_size = self.loaded.device, self.loaded.workload.evaluated(self.batch_size)
        torch.cuda.reset_peak_memory_stats(device)
        self.is_evaluating = True
        runner.evaluate(batch_size)
        torch.cuda.synchronize(device)
        self.evaluation = evaluation_that_ran(
            batch_size,
            (torch.cuda.max_memory_reserved(device), torch.cuda.max_memory_allocated(device)),
            (max(self.peaks_reserved), max(self.peaks_allocated)),
        )

    def _size_of_step(self, runner: TrainingSteps) -> StepSize:
        self.loaded.clear_gradients()
        torch.cuda.reset_peak_memory_stats(self.loaded.device)
        before, allocated = self._requested(), self._requested("allocated")
        runner.run(self.batch_size)
        return self._requested("peak") - before, self._requested("allocated") - allocated

    def _step(self, runner: TrainingSteps, retries_before: int) -> None:
        device = self.loaded.device
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        runner.run(self.batch_size)
        torch.cuda.synchronize(device)
        if self.resident:  # the first step warms up
            self.step_times.append(time.perf_counter() - start)
        self.resident.append(torch.cuda.memory_allocated(device))
        retried = self._counter("num_alloc_retries") - retries_before
        self.memory.append(
            StepMemory(
                held_bytes=self._requested() - runner.gradient_bytes,
                peak_bytes=self._requested("peak"),
                is_warm_up=runner.is_warm_up,
                has_retries=retried > (self.retries[-1] if self.retries else 0),
            )
        )
        self.peaks_allocated.append(torch.cuda.max_memory_allocated(device))
        self.peaks_reserved.append(torch.cuda.max_memory_reserved(device))
        self.retries.append(retried)

    def _counter(self, name: str) -> int:
        return int(torch.cuda.memory_stats(self.loaded.device).get(name, 0))

    def _requested(self, which: str = "current") -> int:
        return self._counter(f"requested_bytes.all.{which}")

    @property
    def peak_allocated(self) -> int:
        """Peak allocated of the steps and of the evaluation pass, bytes."""
        evaluated = self.evaluation.peak_allocated_bytes if self.evaluation else None
        return max(*self.peaks_allocated, evaluated or 0)

    @property
    def peak_reserved(self) -> int:
        """Peak reserved of the steps and of the evaluation pass, bytes."""
        evaluated = self.evaluation.peak_reserved_bytes if self.evaluation else None
        return max(*self.peaks_reserved, evaluated or 0)

    def trial(self) -> Trial:
        """Return the trial of these steps, once they have run."""
        workload = self.loaded.workload
        # A rank whose peers are absent waits for no collective.
        is_timed = self.step_times and not workload.parallel.is_used
        step_time = statistics.median(self.step_times) if is_timed else None
        samples = workload.samples(self.batch_size) * workload.grad_accum
        return finished_trial(
            self.batch_size,
            steps=self.completed,
            peak_allocated_bytes=self.peak_allocated,
            peak_reserved_bytes=self.peak_reserved,
            resident_bytes=self.resident[-1],
            activation_bytes=self.activation_bytes,
            retries=self.retries,
            peaks_by_step=self.peaks_allocated,
            leak=self.leak,
            step_time_s=step_time,
            samples_per_s=samples / step_time if step_time else None,
            batches=self.loaded.variation.found(),
            evaluation=self.evaluation,
            rank=self.loaded.rank,
        )


_MAX_ENTRIES = 500_000
_SEGMENT_KEYS = ("address", "total_size", "stream", "segment_type")
_BLOCK_KEYS = ("address", "size", "requested_size", "state")


class MemoryHistory:
    """Records what one trial allocates and frees, by the history that PyTorch keeps (torch.cuda.memory).

    The functions used here have an underscore, though PyTorch's page "Understanding CUDA Memory Usage"
    documents them (torch 2.1-2.13). Where they are missing, or record something that this class does not
    know, there is no recording; the search then only has less to estimate from.

    Args:
        device: the device of the allocator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._segments: list[dict[str, Any]] = []
        self._entries: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what happens inside."""
        self._entries = []
        try:
            self._segments = [
                segment
                for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
                if segment["device"] == self._device.index
            ]
            torch.cuda.memory._record_memory_history("all", context=None, max_entries=_MAX_ENTRIES)
        except (AttributeError, TypeError, KeyError):
            yield
            return
        try:
            yield
            with contextlib.suppress(RuntimeError, KeyError, IndexError):
                traces = torch.cuda.memory._snapshot(self._device)["device_traces"]
                self._entries = traces[self._device.index or 0]
        finally:
            with contextlib.suppress(RuntimeError):
                torch.cuda.memory._record_memory_history(None)

    def recording(
        self, batch_size: int, available_bytes: int, *, has_convolutions: bool
    ) -> Recording | None:
        """Return what was recorded; None if it is incomplete, or a replay cannot follow it."""
        if not self._entries or len(self._entries) >= _MAX_ENTRIES:
            return None
        try:
            segments = tuple(_slim_segment(segment) for segment in self._segments)
            events = numbered_events(segments, self._entries)
            streams = streams_of(self._entries)
        except (KeyError, ValueError):
            return None
        if streams:  # those of the blocks in the segments are not known
            return None
        return Recording(
            batch_size=batch_size,
            available_bytes=available_bytes,
            has_convolutions=has_convolutions,
            segments=segments,
            events=events,
        )


def _slim_segment(segment: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a segment that a replay needs.

    Raises:
        ValueError: the segment is in a private pool.
    """
    if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0):
        raise ValueError("a private pool")
    slim = {key: segment[key] for key in _SEGMENT_KEYS}
    slim["is_expandable"] = bool(segment.get("is_expandable", False))
    slim["blocks"] = [{key: block[key] for key in _BLOCK_KEYS} for block in segment["blocks"]]
    return slim

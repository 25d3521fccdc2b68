"""The steps of one trial on a CUDA device, and what the allocator's counters say after each."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch

from bsfind.errors import TargetError
from bsfind.records import Leak
from bsfind.stability import is_growing, leak_after, steps_of_a_verdict
from bsfind.workload.step import LoadedWorkload, TrainingSteps

__all__ = ["MeasuredSteps"]

_MAX_SKIPPED_STEPS = 24
"""GradScaler starts at 2**16 and halves at every skipped step: by then the scale is below one."""


@dataclass
class MeasuredSteps:
    """Numbers of one trial; a plain record, so that a failed trial holds no tensor.

    Args:
        device: where the steps run.

    Attributes:
        step_times: of the steps after the first, which warms up; seconds, synchronised.
        resident: bytes allocated after each step.
        requested: the same as tensors asked for it, which rounding to blocks does not blur.
        peaks_allocated: of each step, bytes.
        peaks_reserved: of each step, bytes.
        retries: how often the allocator had flushed its cache, after each step.
        activation_bytes: what a forward pass left allocated, the most of all.
        completed: optimizer steps that really ran.
        leak: what every step leaves behind; None if nothing.
    """

    device: torch.device
    step_times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    requested: list[int] = field(default_factory=list)
    peaks_allocated: list[int] = field(default_factory=list)
    peaks_reserved: list[int] = field(default_factory=list)
    retries: list[int] = field(default_factory=list)
    activation_bytes: int = 0
    completed: int = 0
    leak: Leak | None = None

    def run(self, loaded: LoadedWorkload, batch_size: int, steps: int, capacity_bytes: int) -> None:
        """Run the steps of a trial, and more where memory seems to leak.

        Args:
            loaded: what runs.
            batch_size: samples in each.
            steps: optimizer steps.
            capacity_bytes: what a leak would fill.

        Raises:
            TargetError: GradScaler skips every step.
            Exception: out of memory, or whatever the user's code raises.
        """
        before = 0
        retries_before = self._counter("num_alloc_retries")

        def on_forward_done() -> None:
            self.activation_bytes = max(self.activation_bytes, self._requested() - before)

        runner = TrainingSteps(loaded, on_forward_done)
        attempts = 0
        while runner.completed < steps and attempts < steps + _MAX_SKIPPED_STEPS:
            before = self._requested()
            self._step(runner, batch_size, retries_before)
            attempts += 1
        if loaded.workload.mode == "infer":
            # Nothing is kept for a backward pass: what scales with the batch is the peak.
            self.activation_bytes = self._requested("peak") - before
        if runner.completed == 0:
            raise TargetError(
                f"GradScaler skipped all of {attempts} steps: the gradients are never finite",
                hint="float16 overflows in this model; try `--precision amp-bf16`",
            )
        if is_growing(self.requested):
            settled = len(self.requested)
            for _ in range(steps_of_a_verdict(settled)):
                self._step(runner, batch_size, retries_before)
            left = capacity_bytes - max(self.peaks_allocated)
            self.leak = leak_after(self.requested[:settled], self.requested[settled:], left)
        self.completed = runner.completed

    def _step(self, runner: TrainingSteps, batch_size: int, retries_before: int) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        runner.run(batch_size)
        torch.cuda.synchronize(self.device)
        if self.resident:  # the first step warms up
            self.step_times.append(time.perf_counter() - start)
        self.resident.append(torch.cuda.memory_allocated(self.device))
        self.requested.append(self._requested())
        self.peaks_allocated.append(torch.cuda.max_memory_allocated(self.device))
        self.peaks_reserved.append(torch.cuda.max_memory_reserved(self.device))
        self.retries.append(self._counter("num_alloc_retries") - retries_before)

    def _counter(self, name: str) -> int:
        return int(torch.cuda.memory_stats(self.device).get(name, 0))

    def _requested(self, which: str = "current") -> int:
        return self._counter(f"requested_bytes.all.{which}")

    @property
    def step_time_s(self) -> float | None:
        """Median time of a step, seconds; None if the first was the only one."""
        return statistics.median(self.step_times) if self.step_times else None

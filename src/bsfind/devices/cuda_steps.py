"""The steps of one trial on a CUDA device, and what the allocator's counters say after each."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch

from bsfind.errors import TargetError
from bsfind.failures.leaks import StepMemory, leak_of, steps_differ
from bsfind.records import Leak
from bsfind.workload.randomness import LargestStep, StepSize
from bsfind.workload.step import LoadedWorkload, TrainingSteps


@dataclass
class MeasuredSteps:
    """Numbers of one trial; a plain record, so that a failed trial holds no tensor.

    Args:
        device: where the steps run.

    Attributes:
        step_times: of the steps after the first, which warms up; seconds, synchronised.
        resident: bytes allocated after each step.
        memory: what the verdict on leaks needs of each step.
        peaks_allocated: of each step, bytes.
        peaks_reserved: of each step, bytes.
        retries: how often the allocator had flushed its cache, after each step.
        activation_bytes: what a forward pass left allocated, the most of all.
        completed: optimizer steps that really ran.
        leak: what every step leaves behind; None if nothing.
        differ: whether steps needed different amounts of memory.
    """

    device: torch.device
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

    def run(
        self,
        loaded: LoadedWorkload,
        batch_size: int,
        steps: int,
        capacity_bytes: int,
        largest: LargestStep,
    ) -> bool:
        """Run the steps of a trial, and more where memory seems to leak or steps differ.

        Args:
            loaded: what runs.
            batch_size: samples in each.
            steps: optimizer steps.
            capacity_bytes: what a leak would fill.
            largest: decides on random numbers.

        Returns:
            False if the trial has to start anew, since it is now known which random numbers make a
            step the largest.

        Raises:
            TargetError: GradScaler skips every step.
            Exception: out of memory, or whatever the user's code raises.
        """
        with largest.searched(batch_size):
            return self._run(loaded, batch_size, steps, capacity_bytes, largest)

    def _run(
        self,
        loaded: LoadedWorkload,
        batch_size: int,
        steps: int,
        capacity_bytes: int,
        largest: LargestStep,
    ) -> bool:
        before = 0
        retries_before = self._counter("num_alloc_retries")

        def on_forward_done() -> None:
            self.activation_bytes = max(self.activation_bytes, self._requested() - before)

        runner = TrainingSteps(loaded, on_forward_done)
        while runner.wants_more(steps):
            before = self._requested()
            self._step(runner, batch_size, retries_before)
            if largest.is_undecided:
                largest.decide(lambda: self._size_of_step(loaded, runner, batch_size))
                return False
        if loaded.workload.mode == "infer":
            # Nothing is kept for a backward pass: what scales with the batch is the peak.
            self.activation_bytes = self._requested("peak") - before
        if runner.completed == 0:
            raise TargetError(
                f"GradScaler skipped all of {runner.attempts} steps: the gradients are never finite",
                hint="float16 overflows in this model; try `--precision amp-bf16`",
            )

        def run_more(count: int) -> list[StepMemory]:
            for _ in range(count):
                self._step(runner, batch_size, retries_before)
            return self.memory[-count:]

        left = capacity_bytes - max(self.peaks_allocated)
        self.leak = leak_of(list(self.memory), run_more, left)
        self.differ = steps_differ(self.memory)
        self.completed = runner.completed
        return True

    def _size_of_step(
        self, loaded: LoadedWorkload, runner: TrainingSteps, batch_size: int
    ) -> StepSize:
        loaded.clear_gradients()
        torch.cuda.reset_peak_memory_stats(self.device)
        before, allocated = self._requested(), self._requested("allocated")
        runner.run(batch_size)
        return self._requested("peak") - before, self._requested("allocated") - allocated

    def _step(self, runner: TrainingSteps, batch_size: int, retries_before: int) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        runner.run(batch_size)
        torch.cuda.synchronize(self.device)
        if self.resident:  # the first step warms up
            self.step_times.append(time.perf_counter() - start)
        self.resident.append(torch.cuda.memory_allocated(self.device))
        retried = self._counter("num_alloc_retries") - retries_before
        self.memory.append(
            StepMemory(
                held_bytes=self._requested() - runner.gradient_bytes,
                peak_bytes=self._requested("peak"),
                is_warm_up=runner.is_warm_up,
                has_retries=retried > (self.retries[-1] if self.retries else 0),
            )
        )
        self.peaks_allocated.append(torch.cuda.max_memory_allocated(self.device))
        self.peaks_reserved.append(torch.cuda.max_memory_reserved(self.device))
        self.retries.append(retried)

    def _counter(self, name: str) -> int:
        return int(torch.cuda.memory_stats(self.device).get(name, 0))

    def _requested(self, which: str = "current") -> int:
        return self._counter(f"requested_bytes.all.{which}")

    @property
    def step_time_s(self) -> float | None:
        """Median time of a step, seconds; None if the first was the only one."""
        return statistics.median(self.step_times) if self.step_times else None

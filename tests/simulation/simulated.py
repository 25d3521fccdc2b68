"""The simulator's answer to a run, in the form of the oracle's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from tests.simulation.corpus.case import Run
from tests.simulation.recurrent_sizes import with_given_sizes

from bsfind.simulation.allocator.blocks import Block
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.kernels import attention
from bsfind.simulation.kernels.call import GpuSpec, KernelTrace

__all__ = ["Answer", "peaks_of", "simulate", "target_of", "without_cudnn_workspaces"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the simulator says of a run.

    Attributes:
        load_events: as of `Recording.events`, blocks numbered from here on.
        trial_events: those of the steps.
        streams: the stream of each block, numbered by their first use; empty: all are on one.
        operators: the name of the operator of each event, of the load and then of the trial.
        peak_allocated: in the trial, bytes; None: out of memory.
        peak_reserved: in the trial, bytes; None: out of memory.
        kind: of model, as bsfind reports it.
    """

    load_events: Sequence[int]
    trial_events: Sequence[int]
    streams: Sequence[int]
    operators: Sequence[str]
    peak_allocated: int | None
    peak_reserved: int | None
    kind: str | None


def target_of(result: dict[str, Any]) -> GpuSpec:
    """Return the GPU that gave an answer of the oracle."""
    major, minor, *_ = result["torch"].split(".")
    return GpuSpec(
        capability=tuple(result["capability"]),
        sm_count=result["sm_count"],
        max_threads_per_sm=result["max_threads_per_sm"],
        torch_version=(int(major), int(minor)),
    )


def simulate(run: Run, result: dict[str, Any], *, cudnn: bool = True) -> Answer:
    """Trace a run and replay it.

    Args:
        run: what to train.
        result: the oracle's answer, for its GPU.
        cudnn: cuDNN asks for workspaces; False: as with a stub in cuDNN's place.
    """
    from bsfind.simulation.trace.tracer import Tracer

    with (
        contextlib.nullcontext() if cudnn else without_cudnn_workspaces(),
        with_given_sizes(),
        Tracer(run.case.workload, run.precision, target_of(result)) as tracer,
    ):
        program = tracer.program(run.batch_size, steps=run.steps)
        operators = tracer.steps.operators
    allocator = CachingAllocator(DeviceMemory(result["free_bytes"]))
    allocated = reserved = None
    with contextlib.suppress(SimulatedOutOfMemoryError):
        replayed = program.replay(allocator, program.load(allocator))
        allocated, reserved = replayed.peak_allocated_bytes, replayed.peak_reserved_bytes
    return Answer(
        load_events=program.load_events,
        trial_events=program.trial_events,
        streams=program.streams,
        operators=program.operators,
        peak_allocated=allocated,
        peak_reserved=reserved,
        kind=operators.kind if operators is not None else None,
    )


@contextlib.contextmanager
def without_cudnn_workspaces() -> Iterator[None]:
    """Let the plans of convolutions and attention ask for no workspace: the stub's want none."""
    ignore: Callable[..., None] = lambda *_: None  # noqa: E731
    with (
        mock.patch.object(KernelTrace, "optional_scratch", ignore),
        mock.patch.object(attention, "_PLAN_BYTES", 0),
        mock.patch.object(attention, "_PLAN_BYTES_BEFORE_HOPPER", 0),
    ):
        yield


def peaks_of(load: Sequence[int], trial: Sequence[int], free_bytes: int) -> tuple[int, int] | None:
    """Return the peaks of the trial, allocated and reserved bytes; None if it does not fit."""
    allocator = CachingAllocator(DeviceMemory(free_bytes))
    blocks: list[Block] = []
    try:
        _replay(allocator, blocks, load)
        allocator.empty_cache()
        allocator.reset_peaks()
        _replay(allocator, blocks, trial)
    except SimulatedOutOfMemoryError:
        return None
    return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes


def _replay(allocator: CachingAllocator, blocks: list[Block], events: Sequence[int]) -> None:
    for event in events:
        if event >= 0:
            blocks.append(allocator.malloc(event))
        else:
            allocator.free(blocks[-event - 1])

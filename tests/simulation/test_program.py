"""Programs of allocations, and their replay."""

from __future__ import annotations

import pytest
import torch
from tests.simulation.gpu_specs import GPU_SPECS

from bsfind.failures.leaks import StepMemory
from bsfind.simulation.allocator.caching_allocator import (
    CachingAllocator,
    SimulatedOutOfMemoryError,
)
from bsfind.simulation.allocator.device_memory import DeviceMemory
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec
from bsfind.simulation.trace.program import Program, program_of
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, MARK, RELEASE

MIB = 1 << 20
GPU = GPU_SPECS["h100"]
SPEC = TensorSpec((4,), (1,), torch.float32)
CALL_OF_TWO = Call("aten::two", "default", {"x": SPEC}, (SPEC, SPEC))


def second_first(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    before = trace.scratch(100)
    trace.output(1)
    trace.free(before)
    trace.workspace("cublas", 1000)
    trace.scratch(200)


def test_a_rule_orders_outputs_and_scratch_memory() -> None:
    outputs = ((7, 16), (8, 32))
    entry = (CALL, second_first, CALL_OF_TWO, outputs, "main", "aten::two")
    program = program_of([], [entry, (RELEASE, 7), (RELEASE, 8)], GPU)
    # scratch 0, output 1, workspace 2, scratch 3, output 4
    assert program.trial_events == [100, 32, -1, 1000, 200, 16, -4, -5, -2]
    assert program.operators[0] == "aten::two"


def test_each_thread_has_its_workspace_once() -> None:
    entries = [
        (CALL, second_first, CALL_OF_TWO, (None, None), thread, "aten::two")
        for thread in ("main", "autograd", "main", "autograd")
    ]
    program = program_of([], entries, GPU)
    assert program.trial_events.count(1000) == 2


def wanting(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    trace.outputs()
    trace.optional_scratch(50 * MIB)


def needing(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    trace.outputs()
    trace.scratch(50 * MIB)


@pytest.mark.parametrize(("rule", "fits"), [(wanting, True), (needing, False)])
def test_a_kernel_does_without_optional_memory(rule: object, fits: bool) -> None:
    entry = (CALL, rule, CALL_OF_TWO, ((0, 30 * MIB), None), "main", "aten::conv")
    program = program_of([], [entry, (RELEASE, 0)], GPU)
    allocator = CachingAllocator(DeviceMemory(64 * MIB))
    blocks = program.load(allocator)
    if fits:
        assert program.replay(allocator, blocks).peak_allocated_bytes == 30 * MIB
    else:
        with pytest.raises(SimulatedOutOfMemoryError):
            program.replay(allocator, blocks)


def test_what_a_replay_counts() -> None:
    load = [(ALLOCATE, 0, 10 * MIB, "aten::empty")]
    step = [
        (MARK, "forward_begin"),
        (ALLOCATE, 1, 4 * MIB, "aten::mm"),
        (MARK, "forward_end"),
        (ALLOCATE, 2, 8 * MIB, "aten::mm"),
        (RELEASE, 1),
        (RELEASE, 2),
        (ALLOCATE, 3, 2 * MIB, "aten::mm"),  # a gradient
        (MARK, "step_end", 2 * MIB, True),
        (RELEASE, 3),
    ]
    program = program_of(load, step, GPU)
    allocator = CachingAllocator(DeviceMemory(1 << 30))
    replayed = program.replay(allocator, program.load(allocator))
    assert replayed.peak_allocated_bytes == 22 * MIB
    assert replayed.resident_bytes == (12 * MIB,)
    assert replayed.memory == (
        StepMemory(held_bytes=10 * MIB, peak_bytes=22 * MIB, is_warm_up=True),
    )
    assert replayed.activation_bytes == 4 * MIB
    assert replayed.retries == (0,)
    assert replayed.peaks_by_step == (22 * MIB,)


def test_a_program_of_nothing() -> None:
    allocator = CachingAllocator(DeviceMemory(1 << 30))
    program = Program()
    assert program.replay(allocator, program.load(allocator)).peak_reserved_bytes == 0

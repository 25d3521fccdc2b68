"""A trace that is replayed while it goes on: `simulation/trace/live.py`."""

from __future__ import annotations

import pytest
import torch

from bsfind.devices.simulated import SimulatedDevice
from bsfind.settings import DeviceChoice
from bsfind.simulation.allocator.recording import numbered_events
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec
from bsfind.simulation.trace.live import LiveMemory, LiveRecorder
from bsfind.simulation.trace.recorder import ALLOCATE, CALL, RELEASE
from bsfind.simulation.trace.simulated_torch import SimulatedTorch
from bsfind.units import MIB


def memory_of(limit_bytes: int) -> LiveMemory:
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx3090"))
    device.limit_memory(limit_bytes)
    told = device.describe()
    memory = LiveMemory(
        *(device.gpu.spec("fp32"), device.new_allocator()),
        free_bytes=told.free_bytes,
        total_bytes=told.total_bytes,
        on_first_use=lambda: used.append(True),
    )
    used: list[bool] = []
    memory.is_open = True
    return memory


def test_answers_follow_what_happens() -> None:
    memory = memory_of(100 * MIB)
    ask = memory.answers()
    assert not ask["is_initialized"]()
    memory.add((ALLOCATE, 0, 30 * MIB, "a"))
    memory.add((ALLOCATE, 1, 20 * MIB, "b"))
    memory.add((RELEASE, 0))
    assert ask["is_initialized"]()
    assert ask["memory_allocated"]() == 20 * MIB
    assert ask["max_memory_allocated"](0) == 50 * MIB
    assert ask["memory_reserved"]() == 50 * MIB
    ask["empty_cache"]()
    assert ask["memory_reserved"](device="cuda") == 20 * MIB
    ask["reset_peak_memory_stats"]()
    assert ask["max_memory_allocated"]() == 20 * MIB
    free, total = ask["mem_get_info"]()
    assert 0 < free < total - 20 * MIB
    assert ask["memory_stats"]()["requested_bytes.all.allocated"] == 50 * MIB
    entries = ask["_snapshot"]()["device_traces"][0]
    assert numbered_events((), entries) == (30 * MIB, 20 * MIB, -1)


def test_what_the_tracer_does_before_does_not_count() -> None:
    memory = memory_of(100 * MIB)
    memory.is_open = False
    memory.add((ALLOCATE, 0, 30 * MIB, "a"))
    memory.is_open = True
    memory.add((RELEASE, 0))
    assert not memory.is_used
    assert memory.answers()["memory_reserved"]() == 0


def test_an_entry_that_does_not_fit_leaves_nothing_behind() -> None:
    memory = memory_of(100 * MIB)

    def rule(call: Call, _gpu: GpuSpec, trace: KernelTrace) -> None:
        trace.free(trace.scratch(10 * MIB))
        trace.scratch(40 * MIB)
        trace.outputs()

    memory.add((ALLOCATE, 0, 30 * MIB, "a"))
    output = TensorSpec((60 * MIB,), (1,), torch.uint8)
    call = Call(operator="aten::any", overload="default", arguments={}, outputs=(output,))
    with pytest.raises(
        torch.OutOfMemoryError, match=r"CUDA out of memory. Tried to allocate 60.0 MiB"
    ):
        memory.add((CALL, rule, call, ((1, 60 * MIB),), "main", "op"))
    ask = memory.answers()
    assert ask["memory_allocated"]() == 30 * MIB
    assert ask["memory_stats"]()["num_ooms"] == 1
    memory.add((RELEASE, 1))  # the output, which it has never got
    memory.add((RELEASE, 0))
    memory.add((ALLOCATE, 2, 90 * MIB, "b"))
    assert ask["memory_allocated"]() == 90 * MIB
    assert ask["memory_reserved"]() == 90 * MIB


def test_the_operators_of_this_thread() -> None:
    memory = memory_of(100 * MIB)
    recorder = LiveRecorder(memory)
    device = SimulatedDevice(DeviceChoice(device="sim", gpu="rtx3090"))
    simulated = SimulatedTorch(device.gpu.spec("fp32"), device.gpu.properties, recorder)
    memory.is_open = False
    with simulated.active(memory.answers()):
        memory.is_open = True
        here = torch.ones(1 << 20)
        assert here.sum().item() == 1 << 20
        assert not torch.cuda.is_initialized()
        there = here.to("cuda")
        assert torch.cuda.memory_allocated() == 4 * MIB
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(200 * MIB, dtype=torch.uint8, device="cuda")
        product = there * 2
        assert torch.cuda.memory_allocated() == 8 * MIB
        del there, product
        assert torch.cuda.memory_allocated() == 0

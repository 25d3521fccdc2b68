"""Elementwise operators that do more than write their output (torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates


@allocates("aten::pow.Scalar")
def power_of_a_number(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The base goes to the GPU, but for 1 (`pow_Scalar_out` of native/Pow.cpp)."""
    trace.outputs()
    if call["self"] != 1:
        trace.scratch(16 if isinstance(call["self"], complex) else 8)

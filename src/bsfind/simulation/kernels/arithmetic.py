"""Elementwise operators that do more than write their output (torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates


@allocates("aten::pow.Scalar")
def power_of_a_number(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The base goes to the GPU, but for 1 (`pow_Scalar_out` of native/Pow.cpp)."""
    steps.outputs()
    if call["self"] != 1:
        steps.scratch(16 if isinstance(call["self"], complex) else 8)

"""Dropout and random numbers (torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates
from bsfind.simulation.kernels.layouts import contiguous, dense


@allocates("aten::native_dropout")
def native_dropout(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The mask comes before the output (cuda/Dropout.cu `dropout_cuda`)."""
    if call["train"] is not False:
        trace.output(1)


@allocates("aten::normal.Tensor_float", "aten::normal.Tensor_Tensor")
def normal(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The means are added to samples, through a copy of their size (DistributionTemplates.h)."""
    trace.outputs()
    output = call.outputs[0]
    if output is not None and call.overload == "Tensor_float":
        trace.scratch(output.nbytes)


@allocates("aten::rrelu_with_noise")
def rrelu_with_noise(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """In training the kernel reads a contiguous tensor (cuda/RreluWithNoise.cu)."""
    trace.outputs()
    if call["training"]:
        contiguous(trace, call.tensor("self"))


@allocates("aten::_sample_dirichlet")
def sample_dirichlet(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Gamma variates are divided by their sums (cuda/Distributions.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    trace.scratch(spec.nbytes // max(spec.shape[-1] if spec.dim else 1, 1))


@allocates("aten::bernoulli")
def bernoulli(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Probabilities in 16-bit types are read as float32 (cuda/DistributionTemplates.h)."""
    trace.outputs()
    spec = call.tensor("self")
    if call.overload == "default" and spec.element_size == 2:
        trace.scratch(dense(spec).numel * 4)

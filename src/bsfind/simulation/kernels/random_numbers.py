"""Dropout and random numbers (torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates
from bsfind.simulation.kernels.layouts import contiguous, dense


@allocates("aten::native_dropout")
def native_dropout(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The mask comes before the output (cuda/Dropout.cu `dropout_cuda`)."""
    if call["train"] is not False:
        steps.output(1)


@allocates("aten::normal.Tensor_float", "aten::normal.Tensor_Tensor")
def normal(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """The means are added to samples, through a copy of their size (DistributionTemplates.h)."""
    steps.outputs()
    output = call.outputs[0]
    if output is not None and call.overload == "Tensor_float":
        steps.scratch(output.nbytes)


@allocates("aten::rrelu_with_noise")
def rrelu_with_noise(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """In training the kernel reads a contiguous tensor (cuda/RreluWithNoise.cu)."""
    steps.outputs()
    if call["training"]:
        contiguous(steps, call.tensor("self"))


@allocates("aten::_sample_dirichlet")
def sample_dirichlet(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Gamma variates are divided by their sums (cuda/Distributions.cpp)."""
    steps.outputs()
    spec = call.tensor("self")
    steps.scratch(spec.nbytes // max(spec.shape[-1] if spec.dim else 1, 1))


@allocates("aten::bernoulli")
def bernoulli(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """Probabilities in 16-bit types are read as float32 (cuda/DistributionTemplates.h)."""
    steps.outputs()
    spec = call.tensor("self")
    if call.overload == "default" and spec.element_size == 2:
        steps.scratch(dense(spec).numel * 4)

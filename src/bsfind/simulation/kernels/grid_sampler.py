"""What cuDNN's grid sampler allocates: aten/src/ATen/native/cudnn/GridSampler.cpp, torch 2.6-2.13."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, allocates


def _contiguous(call: Call, names: tuple[str, ...], trace: KernelTrace) -> None:
    for name in names:
        tensor = call.tensor(name)
        if not tensor.is_contiguous():
            trace.scratch(tensor.nbytes)


@allocates("aten::cudnn_grid_sampler")
def cudnn_grid_sampler(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`cudnn_grid_sampler_forward`."""
    _contiguous(call, ("self", "grid"), trace)


@allocates("aten::cudnn_grid_sampler_backward")
def cudnn_grid_sampler_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`cudnn_grid_sampler_backward`."""
    _contiguous(call, ("self", "grid", "grad_output"), trace)

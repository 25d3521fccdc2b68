"""What cuDNN's grid sampler allocates: aten/src/ATen/native/cudnn/GridSampler.cpp, torch 2.6-2.13."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, CudaTarget, Steps, allocates


def _contiguous(call: Call, names: tuple[str, ...], steps: Steps) -> None:
    for name in names:
        tensor = call.tensor(name)
        if not tensor.is_contiguous():
            steps.scratch(tensor.nbytes)


@allocates("aten::cudnn_grid_sampler")
def cudnn_grid_sampler(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`cudnn_grid_sampler_forward`."""
    _contiguous(call, ("self", "grid"), steps)


@allocates("aten::cudnn_grid_sampler_backward")
def cudnn_grid_sampler_backward(call: Call, gpu: CudaTarget, steps: Steps) -> None:
    """`cudnn_grid_sampler_backward`."""
    _contiguous(call, ("self", "grid", "grad_output"), steps)

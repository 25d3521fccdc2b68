"""Layer, RMS and group normalization (aten/src/ATen/native/cuda, torch 2.13)."""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous
from bsfind.simulation.kernels.reductions import trace_sum


def _contiguous_parameters(call: Call, trace: KernelTrace) -> None:
    for name in ("weight", "bias"):
        parameter = call.maybe_tensor(name)
        if parameter is not None:
            contiguous(trace, parameter)


@allocates("aten::native_layer_norm", "aten::_fused_rms_norm")
def layer_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Kernels read contiguous tensors (`layer_norm_cuda` of layer_norm_kernel.cu)."""
    contiguous(trace, call.tensor("input"))
    _contiguous_parameters(call, trace)
    trace.outputs()


@allocates("aten::native_layer_norm_backward", "aten::_fused_rms_norm_backward")
def layer_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradient is made contiguous after the outputs exist (layer_norm_kernel.cu).

    Of many short rows, the parameters' gradients are summed in two steps since torch 2.7
    (`LaunchGammaBetaBackwardCUDAKernel`): in blocks of rows, then over the blocks, into new tensors.
    """
    spec = call.tensor("input")
    contiguous(trace, spec)
    _contiguous_parameters(call, trace)
    width = 1
    for size in call["normalized_shape"]:
        width *= size
    rows = spec.numel // max(width, 1)
    gradients = [
        index for index in (1, 2) if index < len(call.outputs) and call.outputs[index] is not None
    ]
    trace.output(0)
    in_two_steps = (
        gpu.torch_version >= (2, 7)
        and bool(gradients)
        and rows > 64 * 1024
        and width // 32 < gpu.sm_count // 2
    )
    if not in_two_steps:
        trace.outputs()
        contiguous(trace, call.tensor("grad_out"))
        return
    blocks = min(-(-rows // 32), (1 << 20) // width)
    size = spec.element_size
    for parameter in ("weight", "bias"):
        found = call.maybe_tensor(parameter)
        size = found.element_size if found is not None else size
    first = [trace.scratch(width * size) for _ in gradients]
    grad = contiguous(trace, call.tensor("grad_out"))[1]
    partial = TensorSpec((blocks, width), (width, 1), spec.dtype)
    partials = [trace.scratch(partial.nbytes) for _ in gradients]
    for index, replaced in zip(gradients, first, strict=True):
        trace.output(index)
        trace_sum(trace, partial, {0}, gpu)
        trace.free(replaced)
    trace.free(*reversed(partials), grad)


@allocates("aten::native_group_norm")
def group_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Statistics in float32, then a scale and a shift for each channel (group_norm_kernel.cu).

    Up to torch 2.12 the statistics of halves are kept as halves.
    """
    trace.outputs()
    spec = call.tensor("input")
    size = max(spec.element_size, 4)
    batch, channels, groups = call["N"], call["C"], call["group"]
    if spec.element_size < 4 and gpu.torch_version >= (2, 13):
        for _ in range(2):
            trace.scratch(batch * groups * size)
    affine = call.maybe_tensor("weight") is not None or call.maybe_tensor("bias") is not None
    if call["HxW"] != 1 and affine:
        for _ in range(2):
            trace.scratch(batch * channels * size)


@allocates("aten::native_group_norm_backward")
def group_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Sums for each channel, and factors of the gradient (group_norm_kernel.cu)."""
    trace.outputs()
    spec = call.tensor("input")
    size = max(spec.element_size, 4)
    batch, channels, groups = call["N"], call["C"], call["group"]
    sums = [trace.scratch(batch * channels * size) for _ in range(2)]
    if call["output_mask"][0]:
        factors = [trace.scratch(batch * groups * size) for _ in range(2)]
        scale = None
        if call["HxW"] != 1 and call.maybe_tensor("weight") is not None:
            scale = trace.scratch(batch * channels * size)
        trace.free(factors[1], factors[0], scale)
    trace.free(sums[1], sums[0])

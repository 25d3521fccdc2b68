"""Layer, RMS, group and batch normalization (torch 2.13).

aten/src/ATen/native/cuda/{layer_norm_kernel,group_norm_kernel,Normalization}.cu and
aten/src/ATen/native/cudnn/BatchNorm.cpp. cuDNN's own workspaces for batch normalization are not
known: they are 0 for contiguous tensors; for channels-last tensors cuDNN's persistent kernels may
ask for one, which is not modelled.
"""

from __future__ import annotations

import math

import torch

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import cast, contiguous, reads_contiguous
from bsfind.simulation.kernels.reductions import last_power_of_2, trace_reduction, trace_sum

_FLOAT = 4
_INT = 4

allocates("aten::native_layer_norm", "aten::_fused_rms_norm")(
    reads_contiguous("input", "weight", "bias", copies_first=True)
)


@allocates("aten::native_layer_norm_backward", "aten::_fused_rms_norm_backward")
def layer_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradient is made contiguous after the outputs exist (layer_norm_kernel.cu).

    Since torch 2.7 the parameters' gradients of many short rows are summed in two steps
    (`LaunchGammaBetaBackwardCUDAKernel`): within blocks of rows, then over the blocks, into new tensors.
    """
    spec = call.tensor("input")
    for operand in (spec, call.maybe_tensor("weight"), call.maybe_tensor("bias")):
        if operand is not None:
            contiguous(trace, operand)
    width = math.prod(call["normalized_shape"])
    rows = spec.numel // max(width, 1)
    gradients = [
        index for index in (1, 2) if index < len(call.outputs) and call.outputs[index] is not None
    ]
    trace.output(0)
    in_two_steps = (
        gpu.torch_version >= torch_releases.SUMS_OF_ROWS_IN_TWO_STEPS
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
    """Statistics in float32, then scale and shift of each channel (group_norm_kernel.cu).

    Up to torch 2.12 the statistics of 16-bit inputs have the input's type. Before torch 2.14 the input
    is contiguous when it comes here.
    """
    trace.outputs()
    spec = call.tensor("input")
    if gpu.torch_version >= torch_releases.GROUP_NORM_TAKES_STRIDES:
        contiguous(trace, spec)
    size = max(spec.element_size, 4)
    batch, channels, groups = call["N"], call["C"], call["group"]
    if spec.element_size < 4 and gpu.torch_version >= torch_releases.FLOAT_GROUP_STATISTICS:
        for _ in range(2):
            trace.scratch(batch * groups * size)
    affine = call.maybe_tensor("weight") is not None or call.maybe_tensor("bias") is not None
    if call["HxW"] != 1 and affine:
        for _ in range(2):
            trace.scratch(batch * channels * size)


@allocates("aten::native_group_norm_backward")
def group_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Sums for each channel, and factors of the gradient (group_norm_kernel.cu)."""
    if gpu.torch_version >= torch_releases.GROUP_NORM_TAKES_STRIDES:
        contiguous(trace, call.tensor("input"))
        contiguous(trace, call.tensor("grad_out"))
    trace.outputs()
    spec = call.tensor("input")
    size = max(spec.element_size, 4)
    batch, channels, groups = call["N"], call["C"], call["group"]
    sums: list[int | None] = []
    if call["HxW"] != 1 or gpu.torch_version < torch_releases.GROUP_NORM_TAKES_STRIDES:
        sums = [trace.scratch(batch * channels * size) for _ in range(2)]
    if call["output_mask"][0]:
        factors = [trace.scratch(batch * groups * size) for _ in range(2)]
        scale = None
        if call["HxW"] != 1 and call.maybe_tensor("weight") is not None:
            scale = trace.scratch(batch * channels * size)
        trace.free(factors[1], factors[0], scale)
    trace.free(*reversed(sums))


# --------------------------------------------------------------------- batch normalization


def _reduction_blocks(x: TensorSpec) -> tuple[int, int]:
    """`flexible_launch_configs(..., coop_flag=true)` of cuda/Normalization.cuh.

    Returns:
        Blocks along the channels, and blocks that share the reduction of one channel.
    """
    channels = x.shape[1]
    reduced = x.numel // channels
    threads, per_thread, tile, most_blocks = 512, 16, 32, 128
    width = min(last_power_of_2(channels), tile)
    height = min(last_power_of_2(-(-reduced // per_thread)), threads // width)
    if width * height != threads:
        width = min(last_power_of_2(channels), threads // height)
    shared = min(-(-reduced // (height * per_thread)), most_blocks)
    return -(-channels // width), shared if shared >= 8 else 1


def is_channels_last(x: TensorSpec) -> bool:
    """`batch_norm_use_channels_last_kernels`."""
    if x.is_contiguous(torch.channels_last) or x.is_contiguous(torch.channels_last_3d):
        return True
    return x.is_contiguous() and x.dim > 1 and x.stride[1] == 1


def _has_own_kernel(x: TensorSpec) -> bool:
    """`batch_norm_choose_impl` is not `General`, which five-dimensional channels-last tensors get."""
    return x.is_contiguous() or x.is_contiguous(torch.channels_last)


def _general_statistics(x: TensorSpec, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_mean_var` for other layouts: `var_mean`, in float32 or wider."""
    dtype = torch.float32 if x.element_size == 2 else x.dtype
    x, copy = cast(trace, x, dtype)
    every = set(range(x.dim)) - {1}
    size = 32 if dtype == torch.float64 else 16
    trace_reduction(trace, x, every, gpu, size, unroll=2, vector=2)
    trace.free(copy)


def _shared_reduction(x: TensorSpec, values: int, trace: KernelTrace) -> None:
    """Allocate and free the memory in which blocks exchange `values` numbers of each channel."""
    blocks, shared = _reduction_blocks(x)
    if shared > 1:
        staging = trace.scratch(values * x.shape[1] * shared * _FLOAT)
        semaphores = trace.scratch(blocks * _INT)
        trace.free(semaphores, staging)


def _has_elements(tensor: TensorSpec | None) -> bool:
    return tensor is not None and tensor.numel > 0


@allocates("aten::native_batch_norm")
def native_batch_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_cuda`: blocks combine Welford's statistics in global memory."""
    x = call.tensor("input")
    trace.outputs()
    if not call["training"] or x.numel == 0:
        return
    if not _has_own_kernel(x):
        _general_statistics(x, gpu, trace)
    elif is_channels_last(x):
        _shared_reduction(x, 4, trace)


@allocates("aten::native_batch_norm_backward")
def native_batch_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_backward_cuda`: one kernel, or a reduction and an elementwise one."""
    x, grad = call.tensor("input"), call.tensor("grad_out")
    training = bool(call["train"])
    wants_x, wants_weight, wants_bias = call["output_mask"]
    reduces = training or wants_weight or wants_bias
    is_small = x.numel < 2**31 - 1 and grad.numel < 2**31 - 1
    if x.numel == 0 or (reduces and wants_x and not is_channels_last(x) and is_small):
        return
    per_channel = x.shape[1] * (8 if x.dtype == torch.float64 else _FLOAT)
    if not _has_elements(call.maybe_tensor("save_invstd")):
        trace.scratch(per_channel)  # of the running variance
    weight = call.maybe_tensor("weight")
    sums: list[int | None] = []
    if reduces:
        are_channels_last = is_channels_last(x) and is_channels_last(grad)
        if wants_x or are_channels_last:
            sums = [trace.scratch(per_channel), trace.scratch(per_channel)]
        for place in (1, 2):
            if call.outputs[place] is None and are_channels_last and weight is not None:
                sums.append(trace.scratch(weight.nbytes))  # of a parameter that is not trained
            trace.output(place)
        if are_channels_last:
            _shared_reduction(x, 2, trace)
    if wants_x:
        is_mixed = is_channels_last(x) != is_channels_last(grad)
        one = None
        if training and weight is None and is_mixed:
            one = trace.scratch(x.element_size if x.dtype == torch.float64 else _FLOAT)
        trace.output(0)
        trace.free(one)
    trace.free(*reversed(sums))


@allocates("aten::batch_norm_stats")
def batch_norm_stats(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_stats_cuda`, of SyncBatchNorm: as `batch_norm_cuda`, without the result."""
    x = call.tensor("input")
    trace.outputs()
    if is_channels_last(x):
        _shared_reduction(x, 4, trace)


@allocates("aten::batch_norm_backward_reduce")
def batch_norm_backward_reduce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_backward_reduce_cuda`: sums of each channel."""
    x, grad = call.tensor("input"), call.tensor("grad_out")
    trace.outputs()
    if is_channels_last(x) and is_channels_last(grad):
        _shared_reduction(x, 2, trace)


@allocates("aten::cudnn_batch_norm_backward")
def cudnn_batch_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`cudnn_batch_norm_backward`: the gradient in the input's layout, then the outputs."""
    x, grad = call.tensor("input"), call.tensor("grad_output")
    for memory_format in (torch.channels_last, torch.channels_last_3d):
        if x.is_contiguous(memory_format) and not x.is_contiguous():
            break
    else:
        memory_format = torch.contiguous_format
    if not grad.is_contiguous(memory_format):
        trace.scratch(grad.nbytes)

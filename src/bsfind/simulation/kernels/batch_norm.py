"""What batch norm allocates: aten/src/ATen/native/{cuda/Normalization.cu,cudnn/BatchNorm.cpp}.

Checked against the allocations of torch 2.13 with CUDA. cuDNN's own workspaces are not known: they
are 0 for tensors in the contiguous layout; for channels last cuDNN's persistent kernels may ask for
some, which is left out.
"""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import cast
from bsfind.simulation.kernels.reductions import trace_reduction

_FLOAT = 4
_INT = 4


def _last_power_of_2(n: int) -> int:
    """`lastPow2`: the largest power of 2 that is not larger, at least 1."""
    return 1 << max(n.bit_length() - 1, 0)


def _reduction_blocks(x: TensorSpec) -> tuple[int, int]:
    """`flexible_launch_configs(..., coop_flag=true)` of cuda/Normalization.cuh.

    Returns:
        Blocks along the channels, and blocks that share the reduction of one channel.
    """
    channels = x.shape[1]
    reduced = x.numel // channels
    threads, per_thread, tile, most_blocks = 512, 16, 32, 128
    width = min(_last_power_of_2(channels), tile)
    height = min(_last_power_of_2(-(-reduced // per_thread)), threads // width)
    if width * height != threads:
        width = min(_last_power_of_2(channels), threads // height)
    shared = min(-(-reduced // (height * per_thread)), most_blocks)
    return -(-channels // width), shared if shared >= 8 else 1


def _is_channels_last(x: TensorSpec) -> bool:
    """`batch_norm_use_channels_last_kernels`."""
    if x.is_contiguous(torch.channels_last) or x.is_contiguous(torch.channels_last_3d):
        return True
    return x.is_contiguous() and x.dim > 1 and x.stride[1] == 1


def _has_own_kernel(x: TensorSpec) -> bool:
    """`batch_norm_choose_impl`: not `General`, which is what five-dimensional channels last get."""
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
    """Allocate and free what blocks use to exchange `values` numbers of each channel."""
    blocks, shared = _reduction_blocks(x)
    if shared > 1:
        staging = trace.scratch(values * x.shape[1] * shared * _FLOAT)
        semaphores = trace.scratch(blocks * _INT)
        trace.free(semaphores, staging)


def _has_elements(tensor: TensorSpec | None) -> bool:
    return tensor is not None and tensor.numel > 0


@allocates("aten::native_batch_norm")
def native_batch_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_cuda`: Welford's statistics of all blocks meet in global memory."""
    x = call.tensor("input")
    trace.outputs()
    if not call["training"] or x.numel == 0:
        return
    if not _has_own_kernel(x):
        _general_statistics(x, gpu, trace)
    elif _is_channels_last(x):
        _shared_reduction(x, 4, trace)


@allocates("aten::native_batch_norm_backward")
def native_batch_norm_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`batch_norm_backward_cuda`: one kernel, or a reduction and an elementwise one."""
    x, grad = call.tensor("input"), call.tensor("grad_out")
    training = bool(call["train"])
    wants_x, wants_weight, wants_bias = call["output_mask"]
    reduces = training or wants_weight or wants_bias
    is_small = x.numel < 2**31 - 1 and grad.numel < 2**31 - 1
    if x.numel == 0 or (reduces and wants_x and not _is_channels_last(x) and is_small):
        return
    per_channel = x.shape[1] * (8 if x.dtype == torch.float64 else _FLOAT)
    if not _has_elements(call.maybe_tensor("save_invstd")):
        trace.scratch(per_channel)  # of the running variance
    sums: list[int | None] = []
    if reduces:
        sums = [trace.scratch(per_channel), trace.scratch(per_channel)]
        trace.output(1)
        trace.output(2)
        if _is_channels_last(x) and _is_channels_last(grad):
            _shared_reduction(x, 2, trace)
    if wants_x:
        weight = call.maybe_tensor("weight")
        is_mixed = _is_channels_last(x) != _is_channels_last(grad)
        one = None
        if training and weight is None and is_mixed:
            one = trace.scratch(x.element_size if x.dtype == torch.float64 else _FLOAT)
        trace.output(0)
        trace.free(one)
    trace.free(*reversed(sums))


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

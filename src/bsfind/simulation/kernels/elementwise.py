"""Operators on elements, rows and lists of tensors that allocate more than their output (torch 2.13).

Elementwise operators, copies, `torch._foreach_*`, random numbers, distances and Fourier transforms.
The sources are below aten/src/ATen/native; files are named at each rule. cuFFT's own workspace is not
known without a GPU and assumed to be 0: most sizes that are products of small primes need none, or
one of the input's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels import cub
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import (
    contiguous,
    dense,
    dense_strides,
    is_line,
    is_non_overlapping_and_dense,
    reads_contiguous,
    row_major,
)
from bsfind.simulation.kernels.matmul import cublas_workspace
from bsfind.simulation.kernels.reductions import axes, trace_reduction

# cuda/ReflectionPad.cu
allocates("aten::reflection_pad1d", "aten::reflection_pad2d", "aten::reflection_pad3d")(
    reads_contiguous("self")
)


@allocates("aten::pow.Scalar")
def power_of_a_number(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A base other than 1 is copied to the GPU (`pow_Scalar_out` of native/Pow.cpp)."""
    trace.outputs()
    if call["self"] != 1:
        trace.scratch(16 if isinstance(call["self"], complex) else 8)


@allocates("aten::abs")
def absolute(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The result of complex numbers is computed as complex numbers (native/UnaryOps.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    if spec.dtype.is_complex:
        trace.scratch(spec.nbytes)


@allocates("aten::angle")
def angle(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The result of complex numbers is computed as complex numbers (native/UnaryOps.cpp)."""
    spec = call.tensor("self")
    if spec.dtype.is_complex:
        trace.scratch(spec.nbytes)
    trace.outputs()


@allocates("aten::roll")
def roll(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Rolls one dimension of a contiguous tensor after another (cuda/TensorTransformations.cu)."""
    spec, copy = contiguous(trace, call.tensor("self"))
    held = []
    for _ in range(len(call["dims"]) - 1):
        held.append(trace.scratch(spec.nbytes))
        trace.free(copy)
        copy = None
    trace.outputs()
    trace.free(*reversed(held), copy)


@allocates("aten::renorm")
def renorm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Norms, in float32 or wider, and factors (native/ReduceOps.cpp `renorm_out`)."""
    trace.outputs()
    spec = call.tensor("self")
    kept = call["dim"] % max(spec.dim, 1)
    count = spec.shape[kept]
    trace.scratch(count * max(4, spec.element_size))
    dims = set(range(spec.dim)) - {kept}
    trace_reduction(trace, spec, dims, gpu, max(4, spec.element_size), out_bytes=4)
    if spec.element_size < 4:
        trace.free(trace.scratch(count * spec.element_size))


@allocates("aten::equal")
def equal(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`eq` and `all` (`cuda_equal` of cuda/Equal.cpp), unless a tensor is compared with itself."""
    spec = call.tensor("self")
    if call.tensor("other").shape != spec.shape:
        return
    trace.scratch(spec.numel)
    trace.scratch(1)
    compared = TensorSpec(spec.shape, dense_strides(spec), torch.bool)
    trace_reduction(trace, compared, axes(compared, None), gpu, 1)


@allocates("aten::unfold_backward")
def unfold_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Indices along the dimension, as int64 (native/UnfoldBackward.h)."""
    trace.outputs()
    trace.scratch(call["input_sizes"][call["dim"]] * 8)


_CHUNK = 65536


# ------------------------------------------------------------------------ lists of tensors


def _in_one_kernel(tensors: tuple[TensorSpec, ...]) -> bool:
    """`can_use_fast_route` of native/ForeachUtils.h."""
    first = tensors[0].dtype
    return all(
        spec.dtype == first and spec.on_gpu and is_non_overlapping_and_dense(spec)
        for spec in tensors
    )


def _chunks(tensors: tuple[TensorSpec, ...]) -> int:
    return max(-(-spec.numel // _CHUNK) for spec in tensors)


@allocates("aten::_foreach_norm")
def foreach_norm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A partial norm for each chunk of 65536 elements (cuda/ForeachReduceOp.cu)."""
    tensors = call["self"]
    order = float(call["ord"])
    fast = (
        _in_one_kernel(tensors)
        and order in (1.0, 2.0, math.inf)
        and tensors[0].dtype.is_floating_point
    )
    if fast:
        size = max(4, tensors[0].element_size)
        trace.scratch(len(tensors) * _chunks(tensors) * size)
        return
    for index, spec in enumerate(tensors):
        trace.output(index)
        size = spec.element_size
        trace_reduction(trace, spec, axes(spec, None), gpu, max(4, size), out_bytes=size)


@allocates("aten::_foreach_max")
def foreach_max(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A maximum for each chunk of 65536 elements (cuda/ForeachReduceOp.cu)."""
    tensors = call["self"]
    if _in_one_kernel(tensors):
        if gpu.torch_version >= torch_releases.FOREACH_MAX_OUTPUTS_FIRST:
            trace.outputs()
        trace.scratch(len(tensors) * _chunks(tensors) * tensors[0].element_size)
        trace.outputs()
        return
    for index, spec in enumerate(tensors):
        trace.output(index)
        line, copy = contiguous(trace, spec)
        trace_reduction(trace, line, axes(line, None), gpu, line.element_size)
        trace.free(copy)


# -------------------------------------------------------------------------- random numbers


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
    """Gamma samples are divided by their sums (cuda/Distributions.cpp)."""
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


# ------------------------------------------------------------------ distances and segments


@allocates("aten::_cdist_backward")
def cdist_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradients of all pairs of rows are summed (cuda/DistanceKernel.cu)."""
    trace.outputs()
    gradient = call.tensor("grad" if "grad" in call.arguments else "grad_output")  # torch 2.14
    trace.scratch(gradient.numel * call.tensor("x1").shape[-1] * gradient.element_size)


@allocates("aten::_pdist_backward")
def pdist_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The gradients of all pairs of rows are summed (cuda/DistanceKernel.cu)."""
    trace.outputs()
    spec = call.tensor("self")
    trace.scratch(spec.nbytes * (spec.shape[0] - 1))


@allocates("aten::_euclidean_dist")
def euclidean_dist(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A product of rows that contain their norms (`_euclidean_dist` of native/Distance.cpp)."""
    first, second = call.tensor("x1"), call.tensor("x2")
    rows = [spec.numel // max(spec.shape[-1], 1) * spec.element_size for spec in (first, second)]
    norms = []
    for spec, nbytes in zip((first, second), rows, strict=True):
        squares = trace.scratch(spec.nbytes)
        norm = trace.scratch(nbytes)
        trace.free(squares)
        norms += [norm, trace.scratch(nbytes)]
    scaled = trace.scratch(first.nbytes)
    trace.scratch(first.nbytes + 2 * rows[0])
    trace.free(norms[1], norms[0], scaled)
    trace.scratch(second.nbytes + 2 * rows[1])
    trace.free(norms[2], norms[3])
    trace.outputs()
    cublas_workspace(gpu, trace)


@allocates("aten::segment_reduce", "aten::_segment_reduce_backward")
def segment_reduce(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Offsets from lengths (cuda/SegmentReduce.cu)."""
    trace.outputs()
    lengths = call.maybe_tensor("lengths")
    if lengths is None:
        return
    count = lengths.shape[-1]
    zero = trace.scratch(lengths.element_size)
    trace.scratch((lengths.numel + lengths.numel // max(count, 1)) * lengths.element_size)
    trace.free(zero)
    trace.free(trace.scratch(cub.scan(count, lengths.element_size, gpu)))


# ---------------------------------------------------------------------- Fourier transforms


def _transform(trace: KernelTrace, spec: TensorSpec, dims: Sequence[int]) -> None:
    """`_exec_fft`: moves batch dimensions to the front and merges them, with a copy if necessary."""
    axes = [dim % spec.dim for dim in dims]
    batch = [dim for dim in range(spec.dim) if dim not in axes]
    batch.sort(key=lambda dim: -spec.stride[dim])
    if not is_line(spec.permuted(batch)):
        trace.free(trace.scratch(spec.nbytes))


@allocates("aten::_fft_r2c", "aten::_fft_c2c")
def fft(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """CuFFT transforms up to three dimensions at once (cuda/SpectralOps.cpp)."""
    output = call.outputs[0]
    if len(call["dim"]) > 3 and output is not None:
        trace.scratch(output.nbytes)
    trace.outputs()
    if call["dim"]:
        _transform(trace, call.tensor("self"), call["dim"])


@allocates("aten::_fft_c2r")
def fft_backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The input is copied because cuFFT overwrites it (`_fft_c2r_cufft`)."""
    trace.outputs()
    spec = call.tensor("self")
    trace.scratch(spec.nbytes)
    copied = TensorSpec(spec.shape, row_major(spec.shape), spec.dtype)
    _transform(trace, copied, call["dim"][-1:])

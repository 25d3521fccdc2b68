"""Fourier transforms (aten/src/ATen/native/cuda/SpectralOps.cpp, torch 2.13).

cuFFT's own workspace is not known without a GPU, and taken to be 0: most sizes that are products of
small primes need none or one of the input's size.
"""

from __future__ import annotations

from collections.abc import Sequence

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import is_line, row_major


def _transform(trace: KernelTrace, spec: TensorSpec, dims: Sequence[int]) -> None:
    """`_exec_fft`: batch dimensions are moved to the front and merged, by a copy if need be."""
    axes = [dim % spec.dim for dim in dims]
    batch = [dim for dim in range(spec.dim) if dim not in axes]
    batch.sort(key=lambda dim: -spec.stride[dim])
    merged = TensorSpec(
        tuple(spec.shape[dim] for dim in batch),
        tuple(spec.stride[dim] for dim in batch),
        spec.dtype,
    )
    if not is_line(merged):
        trace.free(trace.scratch(spec.nbytes))


@allocates("aten::_fft_r2c", "aten::_fft_c2c")
def forward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """One transform of up to three dimensions; of more, the results go from one to the other."""
    output = call.outputs[0]
    if len(call["dim"]) > 3 and output is not None:
        trace.scratch(output.nbytes)
    trace.outputs()
    if call["dim"]:
        _transform(trace, call.tensor("self"), call["dim"])


@allocates("aten::_fft_c2r")
def backward(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """The input is copied, because cuFFT overwrites it (`_fft_c2r_cufft`)."""
    trace.outputs()
    spec = call.tensor("self")
    trace.scratch(spec.nbytes)
    copied = TensorSpec(spec.shape, row_major(spec.shape), spec.dtype)
    _transform(trace, copied, call["dim"][-1:])


@allocates("aten::abs")
def absolute(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Of complex numbers in complex numbers first (native/UnaryOps.cpp)."""
    trace.outputs()
    spec = call.tensor("self")
    if spec.dtype.is_complex:
        trace.scratch(spec.nbytes)


@allocates("aten::angle")
def angle(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Of complex numbers in complex numbers first (native/UnaryOps.cpp)."""
    spec = call.tensor("self")
    if spec.dtype.is_complex:
        trace.scratch(spec.nbytes)
    trace.outputs()

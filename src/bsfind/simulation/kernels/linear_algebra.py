"""Decompositions of matrices (aten/src/ATen/native/cuda/linalg/BatchLinearAlgebra.cpp, torch 2.13).

What cuSOLVER and MAGMA ask for beside, and copies of matrices in another layout, are not modelled.
"""

from __future__ import annotations

from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.matmul import cublas_workspace

_POINTER = 8


@allocates("aten::linalg_cholesky_ex")
def cholesky(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Several matrices are passed as a list of pointers (`cholesky_helper_cusolver`)."""
    trace.outputs()
    count = _matrices(call.tensor("self"))
    if count > 1:
        trace.free(trace.scratch(count * _POINTER))


@allocates("aten::linalg_solve_triangular")
def solve_triangular(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """A few large matrices one by one, others by lists of pointers (`triangular_solve_kernel`)."""
    trace.outputs()
    _solve_triangular(call.tensor("self"), gpu, trace)


@allocates("aten::cholesky_solve")
def cholesky_solve(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """One matrix by cuSOLVER, several by two triangular systems (`_cholesky_solve_helper_cuda`)."""
    trace.outputs()
    matrix = call.tensor("input2")
    if _matrices(matrix) == 1:
        info = trace.scratch(4)
        trace.free(trace.scratch(matrix.nbytes), info)
    else:
        for _ in range(2):
            _solve_triangular(matrix, gpu, trace)


def _solve_triangular(matrix: TensorSpec, gpu: GpuSpec, trace: KernelTrace) -> None:
    count = _matrices(matrix)
    if count == 0:
        return
    pointers = []
    if count > 8 or matrix.shape[-1] < 64:
        pointers = [trace.scratch(count * _POINTER) for _ in range(2)]
    cublas_workspace(gpu, trace)
    trace.free(*reversed(pointers))


def _matrices(spec: TensorSpec) -> int:
    return spec.numel // max(spec.shape[-1] * spec.shape[-2], 1)

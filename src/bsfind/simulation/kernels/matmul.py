"""Matrix products and decompositions: workspaces, and copies of operands that cuBLAS cannot read.

aten/src/ATen/native/cuda/Blas.cpp and aten/src/ATen/cuda/CUDABlas.cpp, torch 2.6-2.13, and
aten/src/ATen/native/cuda/linalg/BatchLinearAlgebra.cpp, torch 2.13. Not modelled: the copy of a
conjugated tensor (`TensorSpec` does not know the conjugate bit), what cuSOLVER and MAGMA ask for, and
the copies that decompositions make of matrices in another layout.
"""

from __future__ import annotations

import os
import re

import torch

from bsfind.simulation import torch_releases
from bsfind.simulation.kernels.call import Call, GpuSpec, KernelTrace, TensorSpec, allocates
from bsfind.simulation.kernels.layouts import contiguous, is_non_overlapping_and_dense

_MIB = 1 << 20
_LT = _MIB
_LARGE = 32 * _MIB
_DEFAULT = 8_519_680  # ":4096:2:16:8"


def cublas_workspace(gpu: GpuSpec, trace: KernelTrace, *, lt: bool = False) -> None:
    """Allocate the workspace of the calling thread, if it does not exist yet.

    Args:
        gpu: the GPU that runs the kernel.
        trace: allocations of the kernel.
        lt: whether cuBLASLt is called, whose handle is cuBLAS's: that one's workspace comes with it.
    """
    own = lt and gpu.torch_version < torch_releases.SHARED_LT_WORKSPACE
    is_kept = gpu.torch_version >= torch_releases.KEPT_LT_WORKSPACE
    if own and not is_kept:
        trace.scratch(_LT)
    trace.workspace("cublas", cublas_workspace_bytes(gpu))
    if own and is_kept:
        trace.workspace("cublaslt", _LT)


def cublas_workspace_bytes(gpu: GpuSpec) -> int:
    """Return the size of cuBLAS's workspace (`parseChosenWorkspaceSize`).

    `CUBLAS_WORKSPACE_CONFIG`, such as `:4096:2:16:8`, overrides it: pairs of KiB and a count.
    """
    pairs = re.findall(r":(\d+):(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    if pairs:
        return sum(int(size) * 1024 * int(count) for size, count in pairs)
    if gpu.torch_version >= torch_releases.LARGE_BLACKWELL_WORKSPACE:
        return _LARGE if gpu.capability[0] in (9, 10, 12) else _DEFAULT
    return _LARGE if gpu.capability == (9, 0) else _DEFAULT


def _readable(spec: TensorSpec) -> bool:
    """Return whether cuBLAS can read a matrix (`prepare_matrix_for_cublas`)."""
    if is_non_overlapping_and_dense(spec):
        return True
    (rows, columns), (row, column) = spec.shape, spec.stride
    return (row == 1 and column >= max(1, rows)) or (column == 1 and row >= max(1, columns))


def _readable_batch(spec: TensorSpec) -> bool:
    """Return whether cuBLAS can read a batch of matrices (`prepare_batch_matrix_for_cublas`)."""
    _, rows, columns = spec.shape
    _, row, column = spec.stride
    if (row == 1 and column >= max(1, rows)) or (column == 1 and row >= max(1, columns)):
        return True
    return spec.is_contiguous() and row != 0 and column != 0


def _product(
    gpu: GpuSpec,
    trace: KernelTrace,
    result: TensorSpec,
    left: TensorSpec,
    right: TensorSpec,
    *,
    lt: bool = False,
) -> None:
    """Copy what cuBLAS cannot read or write; it computes the transpose of a row-major result."""
    batched = result.dim == 3
    readable = _readable_batch if batched else _readable
    if 0 in (result.numel, left.numel):
        return
    if not readable(result):
        trace.scratch(result.nbytes)
    row_major = result.stride[-1] == 1 and (
        result.is_contiguous() or result.stride[-2] >= max(1, result.shape[-1])
    )
    operands = (right, left) if row_major else (left, right)
    for operand in operands:
        if not readable(operand):
            trace.scratch(operand.nbytes)
    cublas_workspace(gpu, trace, lt=lt)


def _result(call: Call) -> TensorSpec:
    output = call.outputs[0]
    assert output is not None
    return output


@allocates("aten::mm", "aten::bmm")
def mm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`addmm_out_cuda_impl` without a bias, `bmm_out_cuda_impl`."""
    trace.outputs()
    _product(gpu, trace, _result(call), call.tensor("self"), call.tensor("mat2"))


@allocates("aten::addmm", "aten::addmm_", "aten::_addmm_activation")
def addmm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`addmm_out_cuda_impl`; cuBLASLt adds a bias that is a vector."""
    trace.outputs()
    bias, left, right = (call.tensor(name) for name in ("self", "mat1", "mat2"))
    result = _result(call)
    lt = (
        call.operator != "aten::addmm_"
        and bias.dim == 1
        and bias.shape[0] == result.shape[1]
        and result.shape[0] > 1
        and result.shape[1] > 1
        and bias.is_contiguous()
        and not bias.dtype.is_complex
        and call["beta"] == 1
    )
    _product(gpu, trace, result, left, right, lt=lt)


@allocates("aten::baddbmm", "aten::baddbmm_")
def baddbmm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`bmm_out_cuda_impl` onto a copy of the addend."""
    trace.outputs()
    _product(gpu, trace, _result(call), call.tensor("batch1"), call.tensor("batch2"))


@allocates("aten::addbmm", "aten::addbmm_")
def addbmm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """One product after another is added to the result (`addbmm_impl` of LinearAlgebra.cpp)."""
    trace.outputs()
    left, right = call.tensor("batch1"), call.tensor("batch2")
    for _ in range(left.shape[0]):
        handles = [
            trace.scratch(matrix.nbytes)
            for matrix in (_matrix(right), _matrix(left))
            if not _readable(matrix)
        ]
        cublas_workspace(gpu, trace)
        trace.free(*reversed(handles))


def _matrix(batch: TensorSpec) -> TensorSpec:
    return TensorSpec(batch.shape[1:], batch.stride[1:], batch.dtype)


@allocates("aten::_grouped_mm")
def grouped_mm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """Matrix products of groups (`_grouped_mm_cuda` of cuda/GroupedBlas.cpp, torch 2.10-2.13).

    On Hopper and data-centre Blackwell, bfloat16 has a CUTLASS kernel, which takes a list of
    pointers, strides and sizes for each group, and 512 bytes for each multiprocessor
    (cuda/GroupMM.cu). Otherwise cuBLAS computes one product after another (`_grouped_mm_fallback`).
    """
    trace.outputs()
    left, right = call.tensor("self"), call.tensor("mat2")
    if left.dtype == torch.bfloat16 and gpu.capability[0] in (9, 10):
        offs = call.maybe_tensor("offs")
        groups = offs.shape[0] if offs is not None else left.shape[0]
        trace.scratch(60 * groups)
        trace.scratch(512 * gpu.sm_count)
    elif 0 not in (left.numel, right.numel):
        cublas_workspace(gpu, trace)


@allocates("aten::_scaled_mm")
def scaled_mm(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`scaled_gemm`: cuBLASLt multiplies matrices of float8."""
    trace.outputs()
    cublas_workspace(gpu, trace, lt=True)


@allocates("aten::mv", "aten::addmv", "aten::addmv_")
def addmv(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`addmv_out_cuda`: gemv reads neither vectors of stride 0 nor matrices without leading dimension."""
    trace.outputs()
    matrix = call.tensor("self" if call.operator == "aten::mv" else "mat")
    vector = call.tensor("vec")
    if matrix.numel == 0:
        return
    if vector.stride[0] == 0:
        contiguous(trace, vector)
    (rows, columns), (row, column) = matrix.shape, matrix.stride
    if not ((row == 1 and column >= max(1, rows)) or (column == 1 and row >= max(1, columns))):
        contiguous(trace, matrix)
    cublas_workspace(gpu, trace)


@allocates("aten::dot", "aten::vdot")
def dot(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """CuBLAS's dot product (`dot_cuda`)."""
    trace.outputs()
    cublas_workspace(gpu, trace)


@allocates("aten::_trilinear")
def trilinear(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """`_trilinear` of native/Linear.cpp: two products for each slice of the unrolled dimension."""
    trace.outputs()
    shapes = []
    for name, expanded in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        sizes = iter(call.tensor(name).shape)
        total = call.tensor(name).dim + len(call[expanded])
        shapes.append([1 if dim in call[expanded] else next(sizes) for dim in range(total)])
    first, second, third = shapes
    unrolled = call["unroll_dim"]
    size = call.tensor("i1").element_size
    inner = outer = 1
    for dim in range(len(first)):
        if dim == unrolled:
            continue
        both = max(first[dim], second[dim])
        if not (dim in call["sumdim"] and third[dim] == 1):
            inner *= both
        if dim not in call["sumdim"]:
            outer *= max(both, third[dim])
    for _ in range(max(shape[unrolled] for shape in shapes)):
        product = trace.scratch(inner * size)
        total_of_slice = trace.scratch(outer * size)
        cublas_workspace(gpu, trace)
        trace.free(product, total_of_slice)


# -------------------------------------------------------------------------- decompositions

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
    """A few large matrices are solved one by one (`triangular_solve_kernel`)."""
    trace.outputs()
    _solve_triangular(call.tensor("self"), gpu, trace)


@allocates("aten::cholesky_solve")
def cholesky_solve(call: Call, gpu: GpuSpec, trace: KernelTrace) -> None:
    """CuSOLVER solves one matrix; several are two triangular systems (`_cholesky_solve_helper_cuda`)."""
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

"""Grouped matrix products (mixtures of experts), checked as CUDA checks them.

torch's meta kernel takes bfloat16 alone (`_meta_grouped_mm_common` in torch/_meta_registrations.py);
CUDA takes float32 and float16 too, group by group (`_grouped_mm_cuda` in
aten/src/ATen/native/cuda/GroupedBlas.cpp, torch 2.10-2.13; compared with 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bsfind.workload.blame import stands_for_torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# As C++ names them: the dtypes of its enumeration, and the types of its elements.
_NAMES = {torch.float64: "Double", torch.int64: "Long", torch.int32: "Int"}
_TYPES = {torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}


def meta_kernels() -> dict[str, Callable[..., Any]]:
    """Return the kernel; none where torch has no `grouped_mm` for all of these dtypes."""
    if not hasattr(torch.nn.functional, "grouped_mm"):
        return {}
    return {"_grouped_mm": _grouped_mm}


def _grouped_mm(
    self: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    _check(self, mat2, offs, bias, out_dtype)
    is_batch, is_batch_2 = self.dim() == 3, mat2.dim() == 3
    shape: list[int]
    if is_batch:
        shape = [self.shape[0], self.shape[1]] if is_batch_2 else [self.shape[1]]
    elif is_batch_2:
        shape = [self.shape[0]]
    else:
        assert offs is not None
        shape = [offs.shape[0], self.shape[0]]
    alignment = 16 // self.element_size()  # rows start at multiples of 16 bytes
    row = -(-mat2.shape[-1] // alignment) * alignment
    stride = [shape[-1] * row, row, 1][-len(shape) - 1 :]
    return self.new_empty_strided([*shape, mat2.shape[-1]], stride)


@stands_for_torch
def _check(
    left: Tensor,
    right: Tensor,
    offs: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    """Raise what `_grouped_mm_validate_inputs` raises."""
    for name, mat in (("mat_a", left), ("mat_b", right)):
        if mat.dtype not in _DTYPES:
            got = _NAMES.get(mat.dtype, str(mat.dtype).removeprefix("torch.").capitalize())
            raise RuntimeError(
                f"Expected {name} to be Float32, BFloat16 or Float16 matrix, got {got}"
            )
    if left.dim() not in (2, 3):
        raise RuntimeError("mat_a has to be 2 or 3d")
    if right.dim() not in (2, 3):
        raise RuntimeError("mat_b has to be 2 or 3d")
    if 3 in (left.dim(), right.dim()) and left.shape[-1] != right.shape[-2]:
        raise RuntimeError("contraction dimension of mat_a and mat_b must match")
    for mat in (left, right):
        _check_strides(mat)
    if (2 in (left.dim(), right.dim())) != (offs is not None):
        raise RuntimeError(
            "Have to provide offsets if there is a 2d matrix, or no offset if both are 3d"
        )
    if offs is not None:
        if offs.dim() != 1:
            raise RuntimeError("offs has to be 1D")
        if offs.dtype != torch.int32:
            raise RuntimeError("Offsets have to be int32")
        if any(mat.dim() == 3 and mat.shape[0] != offs.shape[0] for mat in (left, right)):
            raise RuntimeError("matrix batch sizes have to match")
    elif left.shape[0] != right.shape[0]:
        raise RuntimeError("batched dimension has to match")
    if bias is not None:
        raise RuntimeError("Bias not supported yet")
    if out_dtype not in (None, left.dtype):
        raise RuntimeError("Grouped gemm output dtype must match `mat_a` dtype")
    if left.dtype != right.dtype:
        raise RuntimeError(
            "expected mat1 and mat2 to have the same dtype, but got: "
            f"{_TYPES[left.dtype]} != {_TYPES[right.dtype]}"
        )


@stands_for_torch
def _check_strides(mat: Tensor) -> None:
    """`check_valid_strides_and_return_transposed`."""
    rows, columns = mat.shape[-2:]
    row, column = mat.stride()[-2:]
    alignment = 16 // mat.element_size()
    if row == 1 and column >= max(1, rows):
        leading = column
    elif column == 1 and row >= max(1, columns):
        leading = row
    else:
        raise RuntimeError(
            f"Invalid strides/sizes, got {list(mat.stride())} for strides and {list(mat.shape)} for sizes"
        )
    if leading % alignment:
        raise RuntimeError("strides should be multiple of 16 bytes")

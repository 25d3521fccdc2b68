"""Which dtypes PyTorch hands to cuDNN: aten/src/ATen/cudnn/Descriptors.cpp and Types.cpp."""

from __future__ import annotations

import torch

from bsfind.simulation.kernels.cuda_checks.check import FLOATING, scalar_name

_COMPUTED = FLOATING
_KNOWN = _COMPUTED | {torch.int32, torch.uint8, torch.int8}


def describes(dtype: torch.dtype) -> None:
    """Refuse a dtype that cuDNN has no name for (`getCudnnDataTypeFromScalarType`)."""
    if dtype not in _KNOWN:
        raise RuntimeError(
            f"getCudnnDataTypeFromScalarType() not supported for {scalar_name(dtype)}"
        )


def has_engines(dtype: torch.dtype) -> None:
    """Refuse integers, which cuDNN names, and has no engine for in PyTorch's layouts."""
    describes(dtype)
    if dtype not in _COMPUTED:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

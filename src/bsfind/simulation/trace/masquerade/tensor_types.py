"""`torch.cuda.FloatTensor` and its like: old names for types of tensors on the GPU.

Code still makes tensors with them (`torch.cuda.FloatTensor(2, 3)`), and asks with `isinstance`.
"""

from __future__ import annotations

from typing import Any

import torch


class TensorType(type):
    """The type of such a name: its instances are tensors on the GPU of one dtype."""

    dtype: torch.dtype

    def __instancecheck__(cls, value: object) -> bool:
        """Tell whether a value is a tensor of this dtype on the GPU."""
        return isinstance(value, torch.Tensor) and value.is_cuda and value.dtype == cls.dtype

    def __call__(cls, *args: Any) -> torch.Tensor:
        """Return a tensor of these sizes, or of these values."""
        sizes = args[0] if len(args) == 1 and isinstance(args[0], torch.Size) else args
        if all(isinstance(size, int) for size in sizes):
            return torch.empty(tuple(sizes) or (0,), dtype=cls.dtype, device="cuda")
        return torch.tensor(args[0], dtype=cls.dtype, device="cuda")


def _named(name: str, dtype: torch.dtype) -> TensorType:
    made = TensorType(name, (), {})
    made.dtype = dtype
    return made


TENSOR_TYPES: dict[str, TensorType] = {
    name: _named(name, dtype)
    for name, dtype in {
        "FloatTensor": torch.float32,
        "DoubleTensor": torch.float64,
        "HalfTensor": torch.float16,
        "BFloat16Tensor": torch.bfloat16,
        "LongTensor": torch.int64,
        "IntTensor": torch.int32,
        "ShortTensor": torch.int16,
        "CharTensor": torch.int8,
        "ByteTensor": torch.uint8,
        "BoolTensor": torch.bool,
    }.items()
}
"""By their names in `torch.cuda`."""

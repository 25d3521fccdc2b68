"""Operators whose meta kernels are missing, refuse what CUDA takes, or return another layout.

Convolutions (their memory format), `masked_fill`, `where` and `nll_loss` (arguments that CUDA takes),
sparse gradients as `nn.Embedding(..., sparse=True)` makes them, packed sequences, grouped matrix
products (mixtures of experts), and the gradient of weight normalization.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.convolution_backend import output_memory_format
from bsfind.simulation.trace.calls import Args, Kwargs, spec_of
from bsfind.simulation.trace.torch_private import (
    address_of,
    current_backward,
    current_node,
    indices_of,
    values_of,
    without_fake,
)
from bsfind.workload.user_errors import stands_for_torch

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher, Handler, OperatorFacts


def handlers() -> dict[str, Handler]:
    """Return the handlers of these operators."""
    return {
        "aten::convolution": _convolution,
        "aten::convolution_backward": _convolution_backward,
        "aten::masked_fill.Tensor": _fill_with_number,
        "aten::masked_fill_.Tensor": _fill_with_number,
        "aten::where.self": _byte_condition,
        "aten::nll_loss_backward": _nll_loss_backward,
        "aten::_coalesce": _coalesce,
        "aten::sparse_mask": _sparse_mask,
        "aten::add_.Tensor": _add_in_place,
        "aten::_pack_padded_sequence": _pack,
    }


def meta_kernels() -> dict[str, Callable[..., Any]]:
    """Return the kernels by operator.

    Without `_grouped_mm` where torch has no `grouped_mm` for all of these dtypes, and without the gradient
    of weight normalization where torch has a meta kernel of it (not in torch 2.6).
    """
    kernels: dict[str, Callable[..., Any]] = {}
    if hasattr(torch.nn.functional, "grouped_mm"):
        kernels["_grouped_mm"] = _grouped_mm
    if _lacks_weight_norm():
        kernels["_weight_norm_interface_backward"] = _weight_norm_backward
    return kernels


# -------------------------------------------------------------- memory formats of convolutions


def _convolution(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    if _is_double_backward():
        args = (args[0], args[1].contiguous(), *args[2:])
    memory_format = _format(args[0], args[1])
    return dispatcher.run(facts, args, kwargs, lambda out: _in_format(out, memory_format))


def _convolution_backward(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> Any:
    # The gradient of the output is brought into the input's format first, whatever it came in
    # (`cudnn_convolution_backward` in aten/src/ATen/native/cudnn/ConvShared.cpp, torch 2.6-2.13),
    # and kernels without cuDNN make it contiguous.
    memory_format = _format(args[1], args[2])

    def adjusted(out: Any) -> Any:
        return *(_in_format(grad, memory_format) for grad in out[:2]), out[2]

    return dispatcher.run(facts, args, kwargs, adjusted)


def _is_double_backward() -> bool:
    """Tell whether a convolution is part of the gradient of a convolution's gradient.

    There, CUDA's are made of contiguous weights, and `is_cuda` is asked, not the masquerade
    (`_convolution_double_backward` of aten/src/ATen/native/Convolution.cpp, torch 2.6-2.13).
    """
    if current_backward() == -1:
        return False
    node = current_node()
    return bool(node.name() == "ConvolutionBackwardBackward0")


def _format(input: torch.Tensor, weight: torch.Tensor) -> torch.memory_format:
    return output_memory_format(spec_of(input), spec_of(weight))


def _in_format(tensor: Any, memory_format: torch.memory_format) -> Any:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_meta or tensor.dim() < 4:
        return tensor
    if tensor.is_contiguous(memory_format=memory_format):
        return tensor
    return torch.empty_like(tensor, memory_format=memory_format)


# ------------------------------------------------- calls that CUDA takes and meta kernels refuse


def _fill_with_number(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> Any:
    """Take a single value from the host, as `masked_fill__cuda` does (cuda/Indexing.cu)."""
    names = ("self", "mask", "value")
    x, mask, value = (*args, *(kwargs[name] for name in names[len(args) :]))
    if not dispatcher.is_on_gpu(x) or value.is_meta or value.dim() > 0:
        return dispatcher.run(facts, args, kwargs)
    operators = getattr(torch.ops.aten, facts.name.removeprefix("aten::"))
    return operators.Scalar(x, mask, value.item())


def _byte_condition(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> Any:
    """Take a condition of uint8, which `where` turns into bools first (TensorCompare.cpp)."""
    if args and args[0].dtype == torch.uint8:
        args = (args[0].to(torch.bool), *args[1:])
    return dispatcher.run(facts, args, kwargs)


def _nll_loss_backward(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> Any:
    return dispatcher.run(facts, *with_long_labels(dispatcher, facts, args, kwargs))


def with_long_labels(
    dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `nll_loss` with labels of uint8, which CUDA takes too, as int64.

    `nll_loss_forward_out_cuda` of aten/src/ATen/native/cuda/Loss.cu, torch 2.13.
    """
    position = 1 if facts.name == "aten::nll_loss_forward" else 2
    target = args[position] if len(args) > position else kwargs.get("target")
    if target is None or target.dtype != torch.uint8:
        return args, kwargs
    with without_fake():
        indices = target.long()
    if len(args) > position:
        return (*args[:position], indices, *args[position + 1 :]), kwargs
    return args, {**kwargs, "target": indices}


# ------------------------------------------------------------------------- sparse gradients
#
# They are indices and values, without a storage of their own. Their parts are tensors like others;
# what makes new parts has no kernel for tensors of the meta device
# (aten/src/ATen/native/sparse/cuda/SparseCUDATensor.cu, torch 2.6-2.13).


def _add_in_place(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Add to a tensor; a sparse one is added to a dense one by one kernel."""
    total, part = args[:2]
    is_sparse = isinstance(part, torch.Tensor) and part.layout is torch.sparse_coo
    if is_sparse and total.layout is torch.strided and total.is_meta:
        dispatcher.values.forget_storage(address_of(total.untyped_storage()))
        return total
    return dispatcher.run(facts, args, kwargs)


def _coalesce(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Sum the values of equal indices; where these are not known, all are taken to differ."""
    (sparse,) = args
    if not sparse.is_meta:
        return dispatcher.compute(facts, args, kwargs)
    indices, values = indices_of(sparse), values_of(sparse)
    known = dispatcher.values.of(indices)
    distinct = None if known is None else torch.unique(known, dim=1)
    count = indices.shape[1] if distinct is None else distinct.shape[1]
    with without_fake():
        new_indices = indices.new_empty((indices.shape[0], count))
        new_values = values.new_empty((count, *values.shape[1:]))
        out = _sparse(new_indices, new_values, sparse)
    dispatcher.record(facts, (indices,), kwargs, out)  # the rule reads how many there were
    if distinct is not None:
        dispatcher.values.set(indices_of(out), distinct)
    return out


def _sparse_mask(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Read a dense tensor at the indices of a sparse one: new values, and a copy of the indices."""
    dense, mask = args
    if not mask.is_meta or dense.layout is not torch.strided:
        return dispatcher.run(facts, args, kwargs)
    values, indices = values_of(mask), indices_of(mask)
    values = torch.empty_like(values, dtype=dense.dtype, memory_format=torch.contiguous_format)
    indices = indices.clone()
    with without_fake():
        return _sparse(indices, values, mask)


def _sparse(indices: torch.Tensor, values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        indices, values, like.shape, check_invariants=False, is_coalesced=True
    )


# --------------------------------------------------------------------- grouped matrix products

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# As C++ names them: the dtypes of its enumeration, and the types of its elements.
_NAMES = {torch.float64: "Double", torch.int64: "Long", torch.int32: "Int"}
_TYPES = {torch.float32: "float", torch.bfloat16: "c10::BFloat16", torch.float16: "c10::Half"}


@functools.cache
def _lacks_weight_norm() -> bool:
    example = torch.empty(1, 1, device="meta")
    try:
        torch.ops.aten._weight_norm_interface_backward(example, example, example, example, 0)
    except NotImplementedError:
        return True
    return False


def _weight_norm_backward(
    grad_w: Tensor, saved_v: Tensor, saved_g: Tensor, saved_norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """`weight_norm_backward_cuda` of aten/src/ATen/native/cuda/WeightNorm.cu, torch 2.6-2.13."""
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(saved_v, memory_format=contiguous),
        torch.empty_like(saved_g, memory_format=contiguous),
    )


def _grouped_mm(
    self: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """`_grouped_mm_cuda` of aten/src/ATen/native/cuda/GroupedBlas.cpp (torch 2.10-2.13).

    It takes float32 and float16 too, group by group; torch's meta kernel takes bfloat16 alone
    (`_meta_grouped_mm_common` in torch/_meta_registrations.py).
    """
    _check_groups(self, mat2, offs, bias, out_dtype)
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
def _check_groups(
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


# ------------------------------------------------------------------------- packed sequences


def _pack(dispatcher: Dispatcher, facts: OperatorFacts, args: Args, kwargs: Kwargs) -> Any:
    """Copy steps that are equally wide together, then join them, by operators that are recorded.

    `_pack_padded_sequence` of aten/src/ATen/native/PackedSequence.cpp (torch 2.6-2.13). The lengths
    are in the host's memory, and hence known.
    """
    padded, lengths, batch_first = args
    if not padded.is_meta or lengths.is_meta:
        return dispatcher.run(facts, args, kwargs)
    if batch_first:
        padded = padded.transpose(0, 1)
    widths = _widths(lengths.tolist())
    parts, start = [], 0
    for step, width in enumerate(widths, start=1):
        if step == len(widths) or widths[step] != width:
            part = padded[start:step, :width].contiguous()
            parts.append(part.view((step - start) * width, *padded.shape[2:]))
            start = step
    joined = torch.cat(parts)
    del part
    while parts:  # a C++ vector goes from its first element on
        parts.pop(0)
    return joined, torch.tensor(widths, dtype=torch.int64)


def _widths(lengths: list[int]) -> list[int]:
    """Return how many sequences have each step; the lengths descend."""
    return [sum(length > step for length in lengths) for step in range(lengths[0])]

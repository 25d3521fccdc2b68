"""Embeddings and indices: native/Embedding.cpp, TensorAdvancedIndexing.cpp, cuda/Indexing.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from bsfind.simulation.kernels.argument_checks.registry import (
    checks,
    cpp_name,
    expects,
    implements,
    requires,
    same_dtype,
    scalar_name,
    tensor_name,
)
from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.workload.user_errors import stands_for_torch

_INT64 = (torch.int64,)
_INDICES = (torch.int64, torch.int32)
_MASKS = (torch.bool, torch.uint8)
_TWO_DEVICES = (
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
)

checks("aten::take")(
    requires("index", _INT64, "take(): Expected a long tensor for index, but got {}")
)
checks("aten::index_fill", "aten::index_fill_")(
    requires("index", _INT64, "index_fill_(): Expected dtype int64 for index.", IndexError)
)
checks("aten::index_add", "aten::index_add_")(  # `index_func_meta_impl`
    requires("index", _INDICES, "index_add_(): Expected dtype int32/int64 for index but got: {}"),
    same_dtype(
        "self",
        "source",
        "index_add_(): self ({}) and source ({}) must have the same scalar type",
    ),
)
checks("aten::index_copy", "aten::index_copy_")(
    requires("index", _INT64, "index_copy_(): Expected a long tensor for index, but got {}"),
    same_dtype(
        "self",
        "source",
        "index_copy_(): self and source expected to have the same dtype, "
        "but got (self) {} and (source) {}",
    ),
)
checks("aten::gather")(
    requires("index", _INDICES, "gather(): Expected dtype int32/int64 for index")
)
checks("aten::masked_fill", "aten::masked_fill_")(
    requires("mask", (torch.bool,), "masked_fill only supports boolean masks, but got dtype {}")
)
checks("aten::masked_scatter", "aten::masked_scatter_")(
    same_dtype(
        "self",
        "source",
        "masked_scatter_: expected self and source to have same dtypes but got {} and {}",
    ),
    requires(
        "mask",
        (torch.bool,),
        "masked_scatter_ only supports boolean masks, but got mask with dtype {}",
        name=cpp_name,
    ),
)
checks("aten::where")(
    requires(
        "condition",
        _MASKS,
        "where expected condition to be a boolean tensor, but got a tensor with dtype {}",
    )
)


@stands_for_torch
def check_one_hot(x: Tensor) -> None:
    """Refuse what `one_hot` refuses (native/Onehot.cpp)."""
    if x.dtype != torch.int64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")


def _check_index(indices: TensorSpec, where: str) -> None:
    """`checkScalarTypes` of aten/src/ATen/TensorUtils.cpp."""
    if indices.dtype not in _INDICES:
        raise RuntimeError(
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: "
            f"Long, Int; but got {tensor_name(indices)} instead (while checking arguments for {where})"
        )


@checks("aten::embedding")
def _embedding(call: Call) -> None:
    _check_index(call.tensor("indices"), "embedding")


@checks("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def _embedding_bag(call: Call) -> None:
    """`_embedding_bag_cuda`: indices and offsets are promoted to their common dtype."""
    indices, offsets = call.tensor("indices"), call.tensor("offsets")
    common = torch.promote_types(indices.dtype, offsets.dtype)
    _check_index(TensorSpec(indices.shape, indices.stride, common), "embedding_bag_cuda")
    weight = call.tensor("weight").dtype
    implements("embedding_bag_cuda", weight)
    expects(weight, call.maybe_tensor("per_sample_weights"))


@checks("aten::_embedding_bag_backward", "aten::_embedding_bag_dense_backward")
def _embedding_bag_backward(call: Call) -> None:
    """`embedding_bag_backward_cuda_max` is compiled without bfloat16."""
    if call["mode"] == 2:
        dtypes = (torch.float32, torch.float64, torch.float16)
        implements("embedding_bag_backward_cuda_max", call.tensor("grad").dtype, dtypes)


@checks("aten::index_select")
def _index_select(call: Call) -> None:
    implements("index_select_out_cuda_impl", call.tensor("index").dtype, _INDICES)


@checks("aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_")
@checks("aten::_index_put_impl_", "aten::_unsafe_index_put")
def _index(call: Call) -> None:
    """`checkIndexTensorTypes` and `expandTensors` of native/IndexingUtils.h."""
    indices = [index for index in call["indices"] if isinstance(index, TensorSpec)]
    if any(index.dtype not in (*_INDICES, *_MASKS) for index in indices):
        raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
    indexed = call.tensor("self")
    if not indexed.on_gpu and any(index.on_gpu for index in indices):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            if call.operator.endswith("index")
            else _TWO_DEVICES
        )
    sizes = indexed.shape
    first = 0
    for position, index in enumerate(call["indices"]):
        if not isinstance(index, TensorSpec) or index.dtype not in _MASKS:
            first += 1
            continue
        if index.shape != sizes[first : first + index.dim]:
            raise IndexError(
                f"The shape of the mask {list(index.shape)} at index {position} does not match "
                f"the shape of the indexed tensor {list(sizes)} at index {first}"
            )
        first += index.dim


@checks("aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
def _index_put(call: Call) -> None:
    ours, theirs = call.tensor("self").dtype, call.tensor("values")
    if call.tensor("self").on_gpu and not theirs.on_gpu and theirs.dim > 0:
        raise RuntimeError(
            "expected device cuda:0 but got device cpu for value tensor"
            if call["accumulate"]
            else _TWO_DEVICES
        )
    if ours == theirs.dtype:
        return
    if call["accumulate"]:  # `index_put_with_sort_kernel` reads with the dtype of the values
        expects(theirs.dtype, call.tensor("self"))
    raise RuntimeError(
        "Index put requires the source and destination dtypes match, "
        f"got {scalar_name(ours)} for the destination and {scalar_name(theirs.dtype)} for the source."
    )


@checks("aten::scatter_reduce", "aten::scatter_reduce_")
def _scatter_reduce(call: Call) -> None:
    dtype = call.tensor("self").dtype
    if call.tensor("src").dtype != dtype:
        raise RuntimeError("scatter(): Expected self.dtype to be equal to src.dtype")
    if call["reduce"] != "sum" and (dtype == torch.bool or dtype.is_complex):
        implements("cuda_scatter_gather_base_kernel_func", dtype, ())

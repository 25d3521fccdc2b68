"""From a call as a dispatch mode sees it to a `Call` that rules understand.

A meta tensor plays a CUDA tensor: both count as on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.trace.torch_private import (
    indices_of,
    schema_of,
    values_of,
)

# Of an overload: the operator's name, the overload's, and (name, default) of each argument.
_Signature = tuple[str, str, tuple[tuple[str, Any], ...]]

_SIGNATURES: dict[Any, _Signature] = {}

_GPU_DEVICES = frozenset({"meta", "cuda"})


def call_of(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    outputs: Sequence[Tensor | None],
    is_on_gpu: Callable[[Tensor], bool] | None = None,
) -> Call:
    """Describe a call without its tensors' values.

    Args:
        func: the operator that was called.
        args: its positional arguments.
        kwargs: its keyword arguments.
        outputs: the flattened tensors of its result (see `flat_tensors`).
        is_on_gpu: tells where a tensor is; None: one of the meta device is on the GPU.

    Returns:
        The call, with the schema's defaults for arguments that were not given.
    """
    signature = _SIGNATURES.get(func)
    if signature is None:
        signature = _SIGNATURES[func] = _signature_of(func)
    operator, overload, parameters = signature
    arguments = dict(parameters)
    for (name, _), value in zip(parameters, args, strict=False):
        arguments[name] = _without_values(value, is_on_gpu)
    if kwargs:
        for name, value in kwargs.items():
            arguments[name] = _without_values(value, is_on_gpu)
    return Call(
        operator=operator,
        overload=overload,
        arguments=arguments,
        outputs=tuple(None if output is None else spec_of(output) for output in outputs),
    )


def spec_of(tensor: Tensor, is_on_gpu: Callable[[Tensor], bool] | None = None) -> TensorSpec:
    """Describe a tensor."""
    on_gpu = is_on_gpu(tensor) if is_on_gpu else tensor.device.type in _GPU_DEVICES
    return TensorSpec(tuple(tensor.shape), _strides(tensor), tensor.dtype, on_gpu)


def flat_tensors(result: Any) -> list[Tensor | None]:
    """Return the tensors of an operator's result, None for undefined ones; other values left out.

    A sparse tensor counts as its indices and its values.
    """
    if isinstance(result, Tensor):
        return [result] if result.layout is torch.strided else list(_tensors_in((result,)))
    return list(_tensors_in(result)) if isinstance(result, (tuple, list)) else []


def _tensors_in(results: Sequence[Any]) -> Iterator[Tensor | None]:
    for result in results:
        if isinstance(result, Tensor) and result.layout is torch.sparse_coo:
            yield indices_of(result)
            yield values_of(result)
        elif result is None or isinstance(result, Tensor):
            yield result
        elif isinstance(result, (tuple, list)):
            yield from _tensors_in(result)


def _signature_of(func: Any) -> _Signature:
    schema = schema_of(func)
    parameters = tuple(
        (argument.name, argument.default_value if argument.has_default_value() else None)
        for argument in schema.arguments
    )
    return schema.name, schema.overload_name or "default", parameters


def _without_values(value: Any, is_on_gpu: Callable[[Tensor], bool] | None) -> Any:
    if isinstance(value, Tensor):
        return spec_of(value, is_on_gpu)
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return tuple(_without_values(item, is_on_gpu) for item in value)
    return value


def _strides(tensor: Tensor) -> tuple[int, ...]:
    # Sparse and nested tensors have none: they are described as if dense.
    if tensor.layout is torch.strided:
        return tuple(tensor.stride())
    stride, strides = 1, []
    for size in reversed(tensor.shape):
        strides.append(stride)
        stride *= size
    return tuple(reversed(strides))

"""Calls of operators: their description for the rules of kernels, and the answers that are remembered.

A meta tensor stands for a CUDA tensor: both count as on the GPU.

PyTorch's meta kernels are largely written in Python and take a hundred times as long as it takes to
make their outputs. Layers and steps repeat, so most calls have shapes that were answered before. An
operator's outputs follow from the shapes, strides and dtypes of its arguments, as long as it neither
aliases them nor reads values; only such calls are remembered (`KnownCall`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bsfind.simulation.kernels.call import Call, TensorSpec
from bsfind.simulation.trace.torch_private import address_of, indices_of, schema_of, values_of

Args = tuple[Any, ...]
"""Positional arguments of a call of an operator."""

Kwargs = dict[str, Any]
"""Its keyword arguments."""

# Of an overload: the operator's name, the overload's, and (name, default) of each argument.
_Signature = tuple[str, str, tuple[tuple[str, Any], ...]]

_SIGNATURES: dict[Any, _Signature] = {}

_GPU_DEVICES = frozenset({"meta", "cuda"})


def call_of(
    func: Any,
    args: Sequence[Any],
    kwargs: Kwargs | None,
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


def are_on_host(args: Args, kwargs: Kwargs) -> bool:
    """Tell whether a call concerns the host alone: all its tensors have values, and so has what it makes."""
    device = kwargs.get("device")
    if device is not None and device.type != "cpu":
        return False
    for values in (args, kwargs.values()) if kwargs else (args,):
        for value in values:
            if isinstance(value, Tensor):
                if value.is_meta:
                    return False
            elif isinstance(value, (list, tuple)) and next(_metas(value), None) is not None:
                return False
    return True


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every argument of a call, those in lists, tuples and dicts included."""
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(item, function) for item in value])
    if isinstance(value, dict):
        return {name: mapped(item, function) for name, item in value.items()}
    return function(value)


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


# ------------------------------------------------------------------- answers that are remembered

_Output = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

_PLAIN = (int, float, bool)
_BY_VALUE = (type(None), str, torch.dtype, torch.device, torch.memory_format, torch.layout)


class _UncacheableError(Exception):
    """The answer to a call does not follow from its arguments' shapes."""


def key_of(
    args: Sequence[Any], kwargs: Kwargs, tensors: list[Tensor], *, of_numbers: bool = True
) -> tuple[Any, ...] | None:
    """Return what the outputs of an operator's call depend on; None if that cannot be told.

    A call whose first argument is in the host's memory is real, and has to be made.

    Args:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        tensors: list that gets the tensors among both.
        of_numbers: whether they depend on the values of numbers; False: on their types only.
    """
    part = _part if of_numbers else _part_without_numbers
    first = args[0] if args else None
    if isinstance(first, (list, tuple)):
        first = first[0] if first else None
    if isinstance(first, Tensor) and not first.is_meta:
        return None
    try:
        key = [part(value, tensors) for value in args]
        for name, value in kwargs.items():
            key.append(name)
            key.append(part(value, tensors))
        return tuple(key)
    except _UncacheableError:
        return None


def _part(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        if value.is_meta and value.layout is torch.strided:
            return value.shape, value.stride(), value.dtype
        if not value.is_meta and not value.shape:
            return "host", value.dtype
        raise _UncacheableError
    if isinstance(value, _PLAIN):
        return value.__class__, value  # 1, 1.0 and True are equal, and are not the same
    if isinstance(value, (list, tuple)):
        return tuple([_part(item, tensors) for item in value])
    if isinstance(value, _BY_VALUE):
        return value
    raise _UncacheableError


def _part_without_numbers(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, _PLAIN):
        return value.__class__
    if isinstance(value, (list, tuple)):
        return tuple([_part_without_numbers(item, tensors) for item in value])
    return _part(value, tensors)


class KnownCall:
    """The answer to a call.

    Args:
        outputs: shape, stride and dtype of each output, None where there is none; None: the
            operator writes to its first argument and returns it.
        kind: type of the result; None: it is one tensor.

    Attributes:
        call: the description of the call for its rule; None until it is needed.
        bounds: what was found about the values of its results (see `Values.follow_again`).
    """

    __slots__ = ("_kind", "_outputs", "bounds", "call")

    def __init__(self, outputs: list[_Output | None] | None, kind: type | None = None) -> None:
        self._outputs = outputs
        self._kind = kind
        self.call: Call | None = None
        self.bounds: dict[Any, Any] = {}

    @classmethod
    def of(cls, out: Any, args: Sequence[Any]) -> KnownCall | None:
        """Return the answer that an operator just gave; None if it cannot be given again.

        It cannot where a result shares an argument's storage, which not every schema declares.
        """
        given = {address_of(tensor.untyped_storage()) for tensor in _metas(args)}
        for tensor in _metas((out,)):
            if tensor.layout is not torch.strided or address_of(tensor.untyped_storage()) in given:
                return None
        if not isinstance(out, (Tensor, tuple, list)):
            return None
        outputs: list[_Output | None] = []
        for item in (out,) if isinstance(out, Tensor) else out:
            output = _described(item) if isinstance(item, Tensor) else None
            if output is None and item is not None:
                return None
            outputs.append(output)
        return cls(outputs, None if isinstance(out, Tensor) else type(out))

    def answer(self, args: Sequence[Any]) -> Any:
        """Return fresh outputs like those of the first call."""
        if self._outputs is None:
            first = args[0]
            return first if isinstance(first, Tensor) else None
        made = [
            None
            if output is None
            else torch.empty_strided(output[0], output[1], dtype=output[2], device="meta")
            for output in self._outputs
        ]
        return made[0] if self._kind is None else self._kind(made)


def _described(tensor: Tensor) -> _Output | None:
    if not tensor.is_meta or tensor.layout is not torch.strided or tensor.storage_offset():
        return None
    shape, stride = tuple(tensor.shape), tensor.stride()
    extent = 0
    if tensor.numel():
        extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if tensor.untyped_storage().nbytes() != extent * tensor.element_size():
        return None
    return shape, stride, tensor.dtype


def _metas(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if value.is_meta:
                yield value
        elif isinstance(value, (list, tuple)):
            yield from _metas(value)

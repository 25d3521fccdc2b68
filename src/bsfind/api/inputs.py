"""The inputs of a model as Python writes them: shapes, texts, examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bsfind.errors import UsageError
from bsfind.inputs import DTYPES, InputSpec, parse_input, parse_input_shape


def input_specs(inputs: Any) -> list[InputSpec]:
    """Return the inputs of the model, none of them with a batch dimension.

    Args:
        inputs: None for none; a mapping of names for keyword inputs; a sequence of several for
            positional ones; or one. Each is a shape such as (3, 224, 224), a text of the command
            line (`128:int64:0..30522`), an `InputSpec`, or an example: the tensor of one sample.

    Raises:
        UsageError: something else, or a text that is none of the command line.
    """
    if inputs is None:
        return []
    if isinstance(inputs, Mapping):
        return [_input(spec, str(name)) for name, spec in inputs.items()]
    if isinstance(inputs, (list, tuple)) and not _is_shape(inputs):
        return [_input(spec, None) for spec in inputs]
    return [_input(inputs, None)]


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(size, int) and not isinstance(size, bool) for size in value
    )


def _input(value: Any, name: str | None) -> InputSpec:
    if isinstance(value, InputSpec):
        text = str(value)
        if name is not None:
            text = f"{name}={text.partition('=')[2] if value.name else text}"
        spec = _read(text, named=name is not None or value.name is not None)
        return dataclasses.replace(spec, assumed=value.assumed)
    if isinstance(value, str):
        text = value if name is None else f"{name}={value}"
        return _read(text, named="=" in text)
    if _is_shape(value):
        shape = ",".join(map(str, value))
        text = shape or ":float32"
        return _read(text if name is None else f"{name}={text}", named=name is not None)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _like(value, name)
    raise UsageError(
        f"an input of type `{type(value).__name__}` says nothing about its shape",
        hint="pass a shape such as (3, 224, 224), a text such as '128:int64:0..30522', or the "
        "tensor of one sample; all without the batch dimension",
    )


def _read(text: str, *, named: bool) -> InputSpec:
    """Read an input with the reader of the command line, whose checks are all the checks."""
    try:
        return parse_input(text) if named else parse_input_shape(text)
    except ValueError as error:
        raise UsageError(f"`inputs`: {error}") from None


def _like(example: Any, name: str | None) -> InputSpec:
    """Return the input of which one sample looks like the example, a tensor or an array."""
    dtype = str(example.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"an example of dtype `{dtype}` cannot be made at random",
            hint="make the batches yourself: `--batch-fn pkg.mod:fn`, or `batch_fn=` in Python",
        )
    shape = ",".join(str(int(size)) for size in example.shape)
    text = f"{shape}:{dtype}"
    if DTYPES[dtype] == "int":
        if 0 in example.shape:
            raise UsageError(f"an example of shape ({shape}) has no values to take the range from")
        text += f":{int(example.min())}..{int(example.max()) + 1}"
    return _read(text if name is None else f"{name}={text}", named=name is not None)

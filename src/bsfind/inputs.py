"""What goes into the model: shapes, dtypes and value ranges, from texts or from Python.

Grammar (no batch dimension anywhere; it is put in front):

    --input-shape SHAPE[:DTYPE[:LOW..HIGH]]      one positional input, float32 unless a dtype is given
    --input NAME=SHAPE[:DTYPE[:LOW..HIGH]]       one keyword input
    --input labels=:int64:0..2                   an empty shape: one scalar per sample

Integers are drawn from LOW ≤ x < HIGH.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bsfind.errors import UsageError

DTYPES = {
    "float32": "float",
    "float16": "float",
    "bfloat16": "float",
    "float64": "float",
    "int64": "int",
    "int32": "int",
    "int16": "int",
    "int8": "int",
    "uint8": "int",
    "bool": "bool",
    "complex64": "complex",
}
"""The dtypes that inputs may have, by torch's names, and the kind of their values."""

_ALIASES = {
    "float": "float32",
    "fp32": "float32",
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "double": "float64",
    "long": "int64",
    "int": "int32",
    "i64": "int64",
    "i32": "int32",
}
_DEFAULT_RANGE = (0, 2)
"""Token ids are the usual integers: 0 and 1 are valid in every vocabulary, and as two-class labels."""
_EXAMPLE = "write it like `input_ids=128:int64:0..30522` or `labels=:int64:0..2`"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of the model.

    Attributes:
        name: keyword argument; None for a positional one.
        shape: without the batch dimension; () is a scalar per sample.
        dtype: a key of `DTYPES`.
        low: integers: smallest value.
        high: integers: first value that does not occur.
        assumed: of `dtype` and `range`, those that the user did not give.
    """

    name: str | None = None
    shape: tuple[int, ...]
    dtype: str = "float32"
    low: int | None = None
    high: int | None = None
    assumed: frozenset[str] = field(default=frozenset(), compare=False)

    def __str__(self) -> str:
        """Return the text of the command line that makes this input."""
        shape = ",".join(map(str, self.shape))
        text = shape if self.name is None else f"{self.name}={shape}"
        if self.low is not None:
            return f"{text}:{self.dtype}:{self.low}..{self.high}"
        return text if self.dtype == "float32" and shape else f"{text}:{self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputSpec:
        """Return the input that `to_json` wrote."""
        return cls(**{**data, "shape": tuple(data["shape"])})


def _parse_shape(text: str, *, scalar_allowed: bool) -> tuple[int, ...]:
    if not text.strip():
        if scalar_allowed:
            return ()
        raise ValueError("the shape is empty, write it like `3,224,224` (no batch dimension)")
    if re.fullmatch(r"\s*[0-9]+(\s*[xX*]\s*[0-9]+)+\s*", text):
        commas = re.sub(r"\s*[xX*]\s*", ",", text.strip())
        raise ValueError(f"`{text}` is not a shape, write `{commas}`")
    sizes = []
    for part in text.strip().strip("()[]").split(","):
        if not re.fullmatch(r"\s*[0-9]+\s*", part):
            what = f"`{part.strip()}` in `{text}`" if part.strip() else f"`{text}`"
            raise ValueError(
                f"{what} is not a size, write a shape like `3,224,224` (no batch dimension)"
            )
        sizes.append(int(part))
    return _checked_shape(tuple(sizes), text)


def _checked_shape(shape: tuple[int, ...], text: str) -> tuple[int, ...]:
    if 0 in shape:
        raise ValueError(f"`{text}` has a dimension of size 0")
    return shape


def parse_input_shape(text: str) -> InputSpec:
    """Read `--input-shape`: one positional input, `SHAPE[:DTYPE[:LOW..HIGH]]`.

    Raises:
        ValueError: not of this form; the message says what to write.
    """
    return _parse_tensor(None, text, text, "write it like `3,224,224` or `128:int64:0..30522`")


def parse_input(text: str) -> InputSpec:
    """Read `--input`: `NAME=SHAPE[:DTYPE[:LOW..HIGH]]`.

    Raises:
        ValueError: not of this form; the message says what to write.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"`{text}` has no name, {_EXAMPLE}")
    return _parse_tensor(_checked_name(name.strip(), text), rest, text, _EXAMPLE)


def _checked_name(name: str, text: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"`{name}` in `{text}` is not a name of an argument, {_EXAMPLE}")
    return name


def _parse_tensor(name: str | None, spec: str, text: str, example: str) -> InputSpec:
    """Read `SHAPE[:DTYPE[:LOW..HIGH]]`, which is the whole `text` or a part of it."""
    shape_text, *more = spec.split(":")
    if len(more) > 2:
        raise ValueError(f"`{text}` has too many `:`, {example}")
    shape = _parse_shape(shape_text, scalar_allowed=bool(more))
    if not more:
        return InputSpec(name=name, shape=shape, assumed=frozenset(("dtype",)))
    dtype = _parse_dtype(more[0])
    kind = DTYPES[dtype]
    if len(more) < 2 and kind == "int":
        low, high = _DEFAULT_RANGE
        assumed = frozenset(("range",))
        return InputSpec(name=name, shape=shape, dtype=dtype, low=low, high=high, assumed=assumed)
    if len(more) < 2:
        return InputSpec(name=name, shape=shape, dtype=dtype)
    if kind != "int":
        raise ValueError(f"`{text}` gives a range, which only integer inputs have")
    match = re.fullmatch(r"\s*(-?[0-9]+)\s*\.\.\s*(-?[0-9]+)\s*", more[1])
    if match is None:
        raise ValueError(f"`{more[1]}` in `{text}` is not a range, {example}")
    low, high = int(match[1]), int(match[2])
    _check_range(low, high, text)
    return InputSpec(name=name, shape=shape, dtype=dtype, low=low, high=high)


def _check_range(low: int, high: int, text: str) -> None:
    if low >= high:
        raise ValueError(
            f"`{low}..{high}` in `{text}` is empty: values are drawn from LOW ≤ x < HIGH"
        )


def _parse_dtype(text: str) -> str:
    name = text.strip().lower().removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"`{text}` is not a dtype, choose one of {', '.join(DTYPES)}")
    return name


# ---------------------------------------------------------------------------------- from Python


def input_specs(inputs: Any) -> list[InputSpec]:
    """Return the inputs of the model, none of them with a batch dimension.

    Args:
        inputs: None for none; a mapping of names for keyword inputs; a sequence of several for
            positional ones; or one. Each is a shape such as (3, 224, 224), a text of the command
            line (`128:int64:0..30522`), an `InputSpec`, or an example: the tensor of one sample.

    Raises:
        UsageError: something else, or a text that the command line does not take.
    """
    if inputs is None:
        return []
    try:
        if isinstance(inputs, Mapping):
            return [
                _input(spec, _checked_name(str(name), str(name))) for name, spec in inputs.items()
            ]
        if isinstance(inputs, (list, tuple)) and not _is_shape(inputs):
            return [_input(spec, None) for spec in inputs]
        return [_input(inputs, None)]
    except ValueError as error:
        raise UsageError(f"`inputs`: {error}") from None


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(size, int) and not isinstance(size, bool) for size in value
    )


def _input(value: Any, name: str | None) -> InputSpec:
    """Return one input; a name goes before that of an `InputSpec`."""
    if isinstance(value, InputSpec):
        return _checked(dataclasses.replace(value, name=name or value.name))
    if isinstance(value, str):
        if name is not None:
            return _parse_tensor(name, value, f"{name}={value}", _EXAMPLE)
        return parse_input(value) if "=" in value else parse_input_shape(value)
    if _is_shape(value):
        assumed = frozenset(("dtype",)) if value else frozenset[str]()
        return _checked(InputSpec(name=name, shape=tuple(value), assumed=assumed))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _like(value, name)
    raise UsageError(
        f"an input of type `{type(value).__name__}` says nothing about its shape",
        hint="pass a shape such as (3, 224, 224), a text such as '128:int64:0..30522', or the "
        "tensor of one sample; all without the batch dimension",
    )


def _checked(spec: InputSpec) -> InputSpec:
    """Return an input that Python made, its integers with a range.

    Raises:
        ValueError: a field that the command line would not take either.
    """
    text = ",".join(map(str, spec.shape))
    if any(size < 0 for size in spec.shape):
        raise ValueError(f"`{text}` is not a shape")
    shape = _checked_shape(tuple(spec.shape), text)
    if spec.name is not None:
        _checked_name(spec.name, str(spec))
    dtype, low, high = _parse_dtype(spec.dtype), spec.low, spec.high
    if DTYPES[dtype] == "int":
        low, high = _DEFAULT_RANGE if low is None or high is None else (low, high)
        _check_range(low, high, str(spec))
    elif low is not None or high is not None:
        raise ValueError(f"`{spec}` gives a range, which only integer inputs have")
    return dataclasses.replace(spec, shape=shape, dtype=dtype, low=low, high=high)


def _like(example: Any, name: str | None) -> InputSpec:
    """Return the input of which one sample looks like the example, a tensor or an array."""
    dtype = str(example.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"an example of dtype `{dtype}` cannot be made at random",
            hint="make the batches yourself: `--batch-fn pkg.mod:fn`, or `batch_fn=` in Python",
        )
    shape = tuple(int(size) for size in example.shape)
    spec = InputSpec(name=name, shape=shape, dtype=dtype)
    if DTYPES[dtype] == "int":
        if 0 in shape:
            text = ",".join(map(str, shape))
            raise UsageError(f"an example of shape ({text}) has no values to take the range from")
        low, high = int(example.min()), int(example.max()) + 1
        spec = dataclasses.replace(spec, low=low, high=high)
    return _checked(spec)

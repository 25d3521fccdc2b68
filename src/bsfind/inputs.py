"""What goes into the model: shapes, dtypes and value ranges, read from the command line.

Grammar (no batch dimension anywhere; it is put in front):

    --input-shape SHAPE[:DTYPE[:LOW..HIGH]]      one positional input, float32 unless a dtype is given
    --input NAME=SHAPE[:DTYPE[:LOW..HIGH]]       one keyword input
    --input labels=:int64:0..2                   an empty shape: one scalar per sample

Integers are drawn from LOW ≤ x < HIGH.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field
from typing import Any

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
# Token ids are the usual integers: 0 and 1 are valid for every vocabulary and every two-class label.
_DEFAULT_RANGE = (0, 2)


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
    if 0 in sizes:
        raise ValueError(f"`{text}` has a dimension of size 0")
    return tuple(sizes)


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
    example = "write it like `input_ids=128:int64:0..30522` or `labels=:int64:0..2`"
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals:
        raise ValueError(f"`{text}` has no name, {example}")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"`{name}` in `{text}` is not a name of an argument, {example}")
    return _parse_tensor(name, rest, text, example)


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
    if low >= high:
        raise ValueError(f"`{more[1]}` in `{text}` is empty: values are drawn from LOW ≤ x < HIGH")
    return InputSpec(name=name, shape=shape, dtype=dtype, low=low, high=high)


def _parse_dtype(text: str) -> str:
    name = text.strip().lower().removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"`{text}` is not a dtype, choose one of {', '.join(DTYPES)}")
    return name

"""What goes into the model: shapes, dtypes and value ranges, from texts or from Python.

Grammar (no batch dimension anywhere; it is put in front):

    --input-shape SHAPE[:DTYPE[:LOW..HIGH]]      one positional input, float32 unless a dtype is given
    --input NAME=SHAPE[:DTYPE[:LOW..HIGH]]       one keyword input
    --input labels=:int64:0..2                   an empty shape: one scalar per sample
    --input labels=@input_ids                    the tensor of another input; @1: of the first positional one
    --input return_loss=True                     a constant: True, False or None
    --input frames==16                           any other constant: a Python literal, or else a text
    --input batch.image=3,224,224                an item of a dict, which is the argument `batch`
    --input ids=L:int64:0..50257                 a dimension with a name, which `--axis L` searches

Integers are drawn from LOW ≤ x < HIGH.
"""

from __future__ import annotations

import dataclasses
import keyword
import math
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bsfind.errors import UsageError
from bsfind.import_path import value_text
from bsfind.units import brief

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
INTEGERS = {
    "int64": (-(2**63), 2**63 - 1),
    "int32": (-(2**31), 2**31),
    "int16": (-(2**15), 2**15),
    "int8": (-(2**7), 2**7),
    "uint8": (0, 2**8),
}
"""LOW and HIGH of the widest range of each dtype. (torch.randint takes HIGH itself as an int64.)"""

LARGEST_TENSOR_BYTES = 2**63 - 1
"""More than this a tensor of PyTorch cannot have: its sizes are int64."""

_DEFAULT_RANGE = (0, 2)
"""Token ids are the usual integers: 0 and 1 are valid in every vocabulary, and as two-class labels."""
_EXAMPLE = "write it like `input_ids=128:int64:0..30522` or `labels=:int64:0..2`"
_LITERALS = {"true": "True", "false": "False", "none": "None"}
"""Constants that cannot be taken for a shape, as they are written in lower case."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input of the model: a random tensor, the tensor of another input, or a constant.

    Attributes:
        name: keyword argument; None for a positional one. `batch.image` is an item of a dict.
        shape: without the batch dimension; () is a scalar per sample. A dimension with a name is 1.
        dtype: a key of `DTYPES`.
        low: integers: smallest value.
        high: integers: first value that does not occur.
        same_as: the name of the input whose tensor this is, or the number of a positional one.
        constant: the text of a constant (see `import_path.parse_value`).
        names: names of dimensions by their places, where there are any; None: it has none.
        assumed: of `dtype` and `range`, those that the user did not give.
    """

    name: str | None = None
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    low: int | None = None
    high: int | None = None
    same_as: str | None = None
    constant: str | None = None
    names: tuple[str | None, ...] = ()
    assumed: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def is_tensor(self) -> bool:
        """Whether a tensor is made for it."""
        return self.same_as is None and self.constant is None

    @property
    def argument(self) -> str | None:
        """The keyword argument that it is, or is in; None for a positional one."""
        return None if self.name is None else self.name.partition(".")[0]

    def at(self, name: str, size: int) -> InputSpec:
        """Return the input whose dimensions of this name have a size."""
        if name not in self.names:
            return self
        pairs = list(zip(self.shape, self.names, strict=True))
        shape = tuple(size if known == name else number for number, known in pairs)
        left = tuple(None if known == name else known for known in self.names)
        return dataclasses.replace(self, shape=shape, names=left if any(left) else ())

    @property
    def _sizes(self) -> list[int | str]:
        """The shape, with the names of dimensions."""
        names = self.names or (None,) * len(self.shape)
        return [name or size for name, size in zip(names, self.shape, strict=True)]

    def nbytes(self, batch_size: int) -> int:
        """Return the bytes of the tensor that is made for a batch."""
        if not self.is_tensor:
            return 0
        element = re.search("[0-9]+", self.dtype)
        return batch_size * math.prod(self.shape) * (int(element[0]) // 8 if element else 1)

    def __str__(self) -> str:
        """Return the text of the command line that makes this input."""
        if self.same_as is not None:
            return f"{self.name}=@{self.same_as}"
        if self.constant is not None:
            return (
                f"{self.name}={'' if self.constant in _LITERALS.values() else '='}{self.constant}"
            )
        shape = ",".join(map(str, self._sizes))
        text = shape if self.name is None else f"{self.name}={shape}"
        if self.low is not None:
            return f"{text}:{self.dtype}:{self.low}..{self.high}"
        is_plain = self.dtype == "float32" and shape and not shape.isidentifier()
        return text if is_plain else f"{text}:{self.dtype}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "name": self.name,
            "shape": self._sizes,
            "dtype": self.dtype,
            "low": self.low,
            "high": self.high,
            "same_as": self.same_as,
            "constant": self.constant,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> InputSpec:
        """Return the input that `to_json` wrote."""
        shape, names = _sizes_and_names(data["shape"])
        return cls(**{**data, "shape": shape, "names": names})


def _sizes_and_names(
    written: Sequence[int | str],
) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """Return the sizes of a shape, 1 where a dimension has a name, and these names."""
    names = tuple(size if isinstance(size, str) else None for size in written)
    sizes = tuple(1 if isinstance(size, str) else size for size in written)
    return sizes, names if any(names) else ()


def _parse_shape(text: str, *, scalar_allowed: bool) -> tuple[int | str, ...]:
    if not text.strip():
        if scalar_allowed:
            return ()
        raise ValueError("the shape is empty, write it like `3,224,224` (no batch dimension)")
    if re.fullmatch(r"\s*[0-9]+(\s*[xX*]\s*[0-9]+)+\s*", text):
        commas = re.sub(r"\s*[xX*]\s*", ",", text.strip())
        raise ValueError(f"`{brief(text)}` is not a shape, write `{brief(commas)}`")
    sizes: list[int | str] = []
    parts = text.strip().strip("()[]").split(",")
    for part in parts:
        name = part.strip()
        # Alone, and with no dtype behind it, a word is hardly the name of a dimension.
        is_name = re.fullmatch(r"[A-Za-z_]\w*", name) and not keyword.iskeyword(name)
        if is_name and (scalar_allowed or len(parts) > 1):
            sizes.append(name)
            continue
        if not re.fullmatch(r"\s*[0-9]{1,999}\s*", part):
            what = f"`{brief(part.strip())}` in `{brief(text)}`" if part.strip() else f"`{text}`"
            raise ValueError(
                f"{what} is not a size, write a shape like `3,224,224` (no batch dimension)"
            )
        sizes.append(int(part))
    return tuple(sizes)


def _checked(spec: InputSpec) -> InputSpec:
    """Return an input if a tensor can be like it, its integers with a range.

    Raises:
        ValueError: no tensor has such a shape, or no such integers are drawn.
    """
    text = brief(spec)
    if any(size < 1 for size in spec.shape):
        raise ValueError(f"`{text}` has a dimension of size {min(spec.shape)}")
    if spec.nbytes(1) > LARGEST_TENSOR_BYTES:
        raise ValueError(f"`{text}` is larger than a tensor can be, 2^63 bytes")
    if spec.dtype not in INTEGERS:
        if spec.low is not None or spec.high is not None:
            raise ValueError(f"`{text}` gives a range, which only integer inputs have")
        return spec
    if spec.low is None or spec.high is None:
        low, high = _DEFAULT_RANGE
        return dataclasses.replace(spec, low=low, high=high, assumed=frozenset(("range",)))
    least, most = INTEGERS[spec.dtype]
    if not least <= spec.low < spec.high <= most:
        raise ValueError(
            f"the range of `{text}` has to be LOW..HIGH with {least} ≤ LOW < HIGH ≤ {most}: values are "
            "drawn from LOW ≤ x < HIGH"
        )
    return spec


def parse_input_shape(text: str) -> InputSpec:
    """Read `--input-shape`: one positional input, `SHAPE[:DTYPE[:LOW..HIGH]]`.

    Raises:
        ValueError: not of this form; the message says what to write.
    """
    return _parse_tensor(None, text, text, "write it like `3,224,224` or `128:int64:0..30522`")


def parse_input(text: str) -> InputSpec:
    """Read `--input`: `NAME=SHAPE[:DTYPE[:LOW..HIGH]]`, `NAME=@OTHER` or `NAME==CONSTANT`.

    Raises:
        ValueError: not of this form; the message says what to write.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        raise ValueError(f"`{brief(text)}` has no name, {_EXAMPLE}")
    return _parse_named(_checked_name(name.strip(), text), rest, text)


def _parse_named(name: str, spec: str, text: str) -> InputSpec:
    """Read what is behind `NAME=`, which is the whole `text` or a part of it."""
    written = spec.strip()
    literal = _LITERALS.get(written.lower())
    if written.startswith("=") or literal is not None:
        constant = written.removeprefix("=").strip()
        return InputSpec(name=name, constant=_LITERALS.get(constant.lower(), constant))
    if written.startswith("@"):
        return InputSpec(name=name, same_as=_checked_other(written[1:].strip(), text))
    if ":" not in written and "," not in written and re.search(r"[^\s\dxX*,()\[\]]", written):
        raise ValueError(
            f"`{brief(written)}` in `{brief(text)}` is not a shape such as `3,224,224`; as a constant, "
            f"write `{brief(name)}=={brief(written)}`"
        )
    return _parse_tensor(name, spec, text, _EXAMPLE)


def _checked_other(other: str, text: str) -> str:
    return other if re.fullmatch("[1-9][0-9]{0,3}", other) else _checked_name(other, text)


def _checked_name(name: str, text: str) -> str:
    argument, *keys = name.split(".")
    if not argument.isidentifier() or keyword.iskeyword(argument) or not all(keys):
        raise ValueError(
            f"`{brief(name)}` in `{brief(text)}` is not a name of an argument, {_EXAMPLE}"
        )
    return name


def check_together(inputs: tuple[InputSpec, ...]) -> None:
    """Make sure that inputs can be made together.

    Raises:
        ValueError: two have the same name, or one is the tensor of another that is not there.
    """
    names = [spec.name for spec in inputs if spec.name is not None]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"`--input {min(twice)}=…` is given twice")
    for name in names:
        inside = next((other for other in names if other.startswith(f"{name}.")), None)
        if inside is not None:
            raise ValueError(f"`{name}` cannot be an input and a dict with `{inside}`")
    positional = len(inputs) - len(names)
    tensors = {spec.name for spec in inputs if spec.is_tensor}
    tensors |= {str(number) for number in range(1, positional + 1)}
    for spec in inputs:
        if spec.same_as is not None and spec.same_as not in tensors:
            raise ValueError(
                f"`{brief(spec)}`: there is no tensor `{brief(spec.same_as)}` among the inputs"
            )


def _parse_tensor(name: str | None, spec: str, text: str, example: str) -> InputSpec:
    """Read `SHAPE[:DTYPE[:LOW..HIGH]]`, which is the whole `text` or a part of it."""
    shape_text, *more = spec.split(":")
    if len(more) > 2:
        raise ValueError(f"`{brief(text)}` has too many `:`, {example}")
    shape, names = _sizes_and_names(_parse_shape(shape_text, scalar_allowed=bool(more)))
    known = InputSpec(name=name, shape=shape, names=names)
    if not more:
        return _checked(dataclasses.replace(known, assumed=frozenset(("dtype",))))
    known = dataclasses.replace(known, dtype=_parse_dtype(more[0]))
    if len(more) < 2:
        return _checked(known)
    match = re.fullmatch(r"\s*(-?[0-9]{1,999})\s*\.\.\s*(-?[0-9]{1,999})\s*", more[1])
    if match is None:
        raise ValueError(f"`{brief(more[1])}` in `{brief(text)}` is not a range, {example}")
    low, high = int(match[1]), int(match[2])
    return _checked(dataclasses.replace(known, low=low, high=high))


def _parse_dtype(text: str) -> str:
    name = text.strip().lower().removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name not in DTYPES:
        raise ValueError(f"`{brief(text)}` is not a dtype, choose one of {', '.join(DTYPES)}")
    return name


# ------------------------------------------------------------------------------------ sequences


def sequence_length(inputs: Sequence[InputSpec]) -> int:
    """Return the length of the sequences among inputs, which are integers; 0: there are none."""
    return max((spec.shape[0] for spec in inputs if spec.shape and spec.low is not None), default=0)


def are_shortened(
    inputs: Sequence[InputSpec], others: Sequence[InputSpec], length: int, shorter: int
) -> bool:
    """Tell whether inputs differ from others in the length of their sequences, and in nothing else."""

    def is_shortened(spec: InputSpec, other: InputSpec) -> bool:
        sizes = tuple(shorter if size == length else size for size in spec.shape)
        return dataclasses.replace(spec, shape=sizes) == other

    return len(inputs) == len(others) and all(map(is_shortened, inputs, others))


# ---------------------------------------------------------------------------------- from Python


def input_specs(inputs: Any) -> list[InputSpec]:
    """Return the inputs of the model, none of them with a batch dimension.

    Args:
        inputs: None for none; a mapping of names for keyword inputs; a sequence of several for
            positional ones; or one. Each is a shape such as (3, 224, 224), a text of the command
            line (`128:int64:0..30522`), an `InputSpec`, or an example: the tensor of one sample.
            In a mapping it can also be a constant (True, None, a number) or a mapping: a dict.

    Raises:
        UsageError: something else, or a text that the command line does not take.
    """
    if inputs is None:
        return []
    try:
        if isinstance(inputs, Mapping):
            return list(_of_mapping(inputs))
        if isinstance(inputs, (list, tuple)) and not _is_shape(inputs):
            return [_input(spec, None) for spec in inputs]
        return [_input(inputs, None)]
    except ValueError as error:
        raise UsageError(f"`inputs`: {error}") from None


def _of_mapping(inputs: Mapping[Any, Any], prefix: str = "") -> Iterator[InputSpec]:
    """Yield keyword inputs; those of a mapping in the mapping are items of a dict."""
    for key, value in inputs.items():
        name = _checked_name(f"{prefix}{key}", str(key))
        if isinstance(value, Mapping):
            yield from _of_mapping(value, f"{name}.")
        elif value is None or isinstance(value, numbers.Number):
            yield InputSpec(name=name, constant=value_text(value))
        else:
            yield _input(value, name)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_integer, value))


def _input(value: Any, name: str | None) -> InputSpec:
    """Return one input; a name goes before that of an `InputSpec`."""
    if isinstance(value, InputSpec):
        return _of_python(dataclasses.replace(value, name=name or value.name))
    if isinstance(value, str):
        if name is not None:
            return _parse_named(name, value, f"{name}={value}")
        return parse_input(value) if "=" in value else parse_input_shape(value)
    if _is_shape(value):
        assumed = frozenset(("dtype",)) if value else frozenset[str]()
        return _of_python(InputSpec(name=name, shape=tuple(value), assumed=assumed))
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _like(value, name)
    raise UsageError(
        f"an input of type `{type(value).__name__}` says nothing about its shape",
        hint="pass a shape such as (3, 224, 224), a text such as '128:int64:0..30522', or the "
        "tensor of one sample; all without the batch dimension",
    )


def _of_python(spec: InputSpec) -> InputSpec:
    """Return an input that Python made, with fields as the command line makes them.

    Raises:
        ValueError: a field that the command line would not take either.
    """
    if not spec.is_tensor:
        return parse_input(str(spec))
    if spec.names and not all(name is None or str(name).isidentifier() for name in spec.names):
        raise ValueError(f"`{brief(spec.names)}` are not names of dimensions")
    if not _is_shape(spec.shape):
        raise ValueError(
            f"`{brief(spec.shape)}` is not a shape, pass integers such as (3, 224, 224)"
        )
    ends = [end for end in (spec.low, spec.high) if end is not None]
    if not all(map(_is_integer, ends)):
        raise ValueError(f"the range {spec.low!r} to {spec.high!r} is not of integers")
    if spec.name is not None:
        _checked_name(str(spec.name), str(spec.name))
    return _checked(
        dataclasses.replace(
            spec,
            shape=tuple(map(int, spec.shape)),
            dtype=_parse_dtype(str(spec.dtype)),
            low=None if spec.low is None else int(spec.low),
            high=None if spec.high is None else int(spec.high),
        )
    )


def _like(example: Any, name: str | None) -> InputSpec:
    """Return the input of which one sample looks like the example, a tensor or an array."""
    dtype = str(example.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UsageError(
            f"an example of dtype `{dtype}` cannot be made at random",
            hint="make the batches yourself: `--batch-fn pkg.mod:fn`, or `batch_fn=` in Python",
        )
    try:
        shape, low, high = tuple(int(size) for size in example.shape), None, None
    except Exception:  # sizes that are not known, a nested tensor
        raise UsageError(f"this `{type(example).__name__}` has no shape of integers") from None
    try:
        if dtype in INTEGERS:
            low, high = int(example.min()), int(example.max()) + 1
    except Exception:  # it is empty, or on torch's device `meta`
        text = ",".join(map(str, shape))
        raise UsageError(
            f"an example of shape ({text}) has no values to take the range from"
        ) from None
    return _checked(InputSpec(name=name, shape=shape, dtype=dtype, low=low, high=high))

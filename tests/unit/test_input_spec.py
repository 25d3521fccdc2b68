"""What `--input-shape` and `--input` take, and how they refuse the rest."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsfind.errors import UsageError
from bsfind.inputs import (
    DTYPES,
    INTEGERS,
    InputSpec,
    input_specs,
    parse_input,
    parse_input_shape,
)

EXAMPLE = "write it like `input_ids=128:int64:0..30522` or `labels=:int64:0..2`"


@st.composite
def keyword_inputs(draw: st.DrawFn) -> InputSpec:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    low = high = None
    if DTYPES[dtype] == "int":
        least, most = INTEGERS[dtype]
        low = draw(st.integers(least, most - 1))
        high = draw(st.integers(low + 1, most))
    return InputSpec(
        name=draw(st.sampled_from(["x", "input_ids", "_mask", "größe"])),
        shape=tuple(draw(st.lists(st.integers(1, 4096), max_size=4))),
        dtype=dtype,
        low=low,
        high=high,
    )


@given(spec=keyword_inputs())
def test_keyword_inputs_are_read_as_they_were_written(spec: InputSpec) -> None:
    assert parse_input(str(spec)) == spec
    assert InputSpec.from_json(spec.to_json()) == spec


@given(spec=keyword_inputs())
def test_positional_inputs_are_read_as_they_were_written(spec: InputSpec) -> None:
    positional = dataclasses.replace(spec, name=None)
    assert parse_input_shape(str(positional)) == positional


@given(shape=st.lists(st.integers(1, 4096), min_size=1, max_size=5).map(tuple))
def test_shapes_are_read_as_they_were_written(shape: tuple[int, ...]) -> None:
    spec = InputSpec(shape=shape)
    assert parse_input_shape(str(spec)) == spec
    assert parse_input_shape(str(shape).replace(",)", ")")) == spec
    assert parse_input_shape(str(list(shape))) == spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("x=3,224,224", InputSpec(name="x", shape=(3, 224, 224))),
        ("x=8:bf16", InputSpec(name="x", shape=(8,), dtype="bfloat16")),
        ("x=8:torch.float16", InputSpec(name="x", shape=(8,), dtype="float16")),
        ("ids=128:long", InputSpec(name="ids", shape=(128,), dtype="int64", low=0, high=2)),
        ("ids=128:int64", InputSpec(name="ids", shape=(128,), dtype="int64", low=0, high=2)),
        (
            "labels=:int64:0..1000",
            InputSpec(name="labels", shape=(), dtype="int64", low=0, high=1000),
        ),
        ("d=4:int32:-3..4", InputSpec(name="d", shape=(4,), dtype="int32", low=-3, high=4)),
        ("weight=:float32", InputSpec(name="weight", shape=())),
        ("mask=128:bool", InputSpec(name="mask", shape=(128,), dtype="bool")),
        ("labels=@ids", InputSpec(name="labels", same_as="ids")),
        ("labels=@1", InputSpec(name="labels", same_as="1")),
        ("return_loss=true", InputSpec(name="return_loss", constant="True")),
        ("return_loss==true", InputSpec(name="return_loss", constant="True")),
        ("past=None", InputSpec(name="past", constant="None")),
        ("frames==16", InputSpec(name="frames", constant="16")),
        ("mode=='16'", InputSpec(name="mode", constant="'16'")),
        ("batch.a.b-1=3", InputSpec(name="batch.a.b-1", shape=(3,))),
    ],
)
def test_keyword_inputs(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec
    assert parse_input(str(spec)) == spec
    assert InputSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the shape is empty, write it like `3,224,224` (no batch dimension)"),
        ("3x224x224", "`3x224x224` is not a shape, write `3,224,224`"),
        ("3 * 224", "`3 * 224` is not a shape, write `3,224`"),
        (
            "3,,224",
            "`3,,224` is not a size, write a shape like `3,224,224` (no batch dimension)",
        ),
        (
            "3,-1",
            "`-1` in `3,-1` is not a size, write a shape like `3,224,224` (no batch dimension)",
        ),
        (
            "B",
            "`B` in `B` is not a size, write a shape like `3,224,224` (no batch dimension)",
        ),
        ("3,0", "`3,0` has a dimension of size 0"),
        ("8:int65", f"`int65` is not a dtype, choose one of {', '.join(DTYPES)}"),
        (
            "8:int64:0..2:9",
            "`8:int64:0..2:9` has too many `:`, write it like `3,224,224` or `128:int64:0..30522`",
        ),
    ],
)
def test_refused_shapes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_input_shape(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,224,224", f"`3,224,224` has no name, {EXAMPLE}"),
        ("1x=3", f"`1x` in `1x=3` is not a name of an argument, {EXAMPLE}"),
        ("class=3", f"`class` in `class=3` is not a name of an argument, {EXAMPLE}"),
        ("x=3:int64:0..2:9", f"`x=3:int64:0..2:9` has too many `:`, {EXAMPLE}"),
        ("x=", "the shape is empty, write it like `3,224,224` (no batch dimension)"),
        (
            "mode=sum",
            "`sum` in `mode=sum` is not a shape such as `3,224,224`; as a constant, write `mode==sum`",
        ),
        ("x=@", f"`` in `x=@` is not a name of an argument, {EXAMPLE}"),
        ("x.=3", f"`x.` in `x.=3` is not a name of an argument, {EXAMPLE}"),
        ("x=3:float8", f"`float8` is not a dtype, choose one of {', '.join(DTYPES)}"),
        ("x=3::0..2", f"`` is not a dtype, choose one of {', '.join(DTYPES)}"),
        ("x=3:float32:0..1", "`x=3:float32:0..1` gives a range, which only integer inputs have"),
        ("x=3:int64:5", f"`5` in `x=3:int64:5` is not a range, {EXAMPLE}"),
        (
            "x=3:int64:2..2",
            "the range of `x=3:int64:2..2` has to be LOW..HIGH with -9223372036854775808 ≤ LOW < HIGH "
            "≤ 9223372036854775807: values are drawn from LOW ≤ x < HIGH",
        ),
        (
            "x=3:uint8:-1..9",
            "the range of `x=3:uint8:-1..9` has to be LOW..HIGH with 0 ≤ LOW < HIGH ≤ 256: values are "
            "drawn from LOW ≤ x < HIGH",
        ),
        (
            "x=3,9223372036854775808",
            "`x=3,9223372036854775808` is larger than a tensor can be, 2^63 bytes",
        ),
        (
            "x=4294967296,2147483648:uint8",
            "`x=4294967296,2147483648:uint8` is larger than a tensor can be, 2^63 bytes",
        ),
        (
            "x=1" + "0" * 200,
            f"`x=1{'0' * 47}…{'0' * 30}` is larger than a tensor can be, 2^63 bytes",
        ),
    ],
)
def test_refused_inputs(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_input(text)


def test_the_example_in_the_refusals_can_be_read() -> None:
    for text in re.findall("`([^`]+)`", EXAMPLE):
        assert parse_input(text).dtype == "int64"


@pytest.mark.parametrize("text", ["3,S,S", "L:int64:0..50257", "L,80", "frames:float32"])
def test_a_dimension_can_have_a_name(text: str) -> None:
    spec = parse_input_shape(text)
    (name,) = {name for name in spec.names if name is not None}
    assert str(spec) == text
    assert InputSpec.from_json(spec.to_json()) == spec
    assert spec.nbytes(1) > 0
    assert str(spec.at(name, 12)) == text.replace(name, "12", 2).removesuffix(":float32")
    assert spec.at("other", 12) == spec


def test_names_of_python_are_checked() -> None:
    with pytest.raises(UsageError, match="are not names of dimensions"):
        input_specs(InputSpec(shape=(3, 1), names=(None, "a b")))
    assert input_specs({"x": "3,S"})[0].names == (None, "S")

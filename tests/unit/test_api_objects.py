"""Inputs and models as Python objects: what `bsfind.find` makes of them for another process."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

import bsfind
from bsfind import api
from bsfind.import_path import ModelRef, callable_name, locate
from bsfind.inputs import input_specs

ROOT = Path(__file__).parents[2]


# --------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [
        (None, []),
        ((3, 224, 224), ["3,224,224"]),
        ([3, 224, 224], ["3,224,224"]),
        (torch.Size((3, 4)), ["3,4"]),
        ("128:int64:0..30522", ["128:int64:0..30522"]),
        ("ids=128:long", ["ids=128:int64:0..2"]),
        ([(3, 4), "5", bsfind.InputSpec(shape=(6,), dtype="float16")], ["3,4", "5", "6:float16"]),
        (((3, 4), (5,)), ["3,4", "5"]),
        ((), [":float32"]),
        ({"x": (3, 4), "y": (), "z": ":int64:0..10"}, ["x=3,4", "y=:float32", "z=:int64:0..10"]),
        ({"x": bsfind.InputSpec(name="other", shape=(4,))}, ["x=4"]),
        ({"x": bsfind.InputSpec(shape=(4,), dtype="int64", low=0, high=9)}, ["x=4:int64:0..9"]),
        (bsfind.InputSpec(name="x", shape=(4,)), ["x=4"]),
        (torch.zeros(3, 4), ["3,4"]),
        (torch.zeros(3, 4, dtype=torch.bfloat16), ["3,4:bfloat16"]),
        (torch.tensor([5, -2, 7]), ["3:int64:-2..8"]),
        (torch.tensor(3), [":int64:3..4"]),
        (torch.tensor(0.5), [":float32"]),
        ({"mask": torch.ones(4, dtype=torch.bool)}, ["mask=4:bool"]),
        ([torch.zeros(3), torch.zeros(2)], ["3", "2"]),
    ],
    ids=str,
)
def test_inputs(inputs: Any, texts: list[str]) -> None:
    assert [str(spec) for spec in input_specs(inputs)] == texts


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((3, 0), "`3,0` has a dimension of size 0"),
        ("3x4", "write `3,4`"),
        ({"class": (3,)}, "is not a name of an argument"),
        (3.5, "an input of type `float` says nothing about its shape"),
        (True, "an input of type `bool`"),
        ([(3, 4), None], "an input of type `NoneType`"),
        (torch.zeros(3, dtype=torch.complex128), "an example of dtype `complex128`"),
        (torch.zeros(0, dtype=torch.int64), "has no values to take the range from"),
    ],
    ids=str,
)
def test_refused_inputs(inputs: Any, said: str) -> None:
    with pytest.raises(bsfind.UsageError) as raised:
        input_specs(inputs)
    assert said in raised.value.message


# --------------------------------------------------------------------------------------- models


def make_model() -> nn.Module:
    return nn.Linear(3, 3)


class Outer:
    class Inner(nn.Linear):
        pass


HERE = Path(__file__).parent


def test_what_can_be_imported_by_its_name(tmp_path: Path) -> None:
    here = str(HERE)
    assert locate("a:b", tmp_path) == ModelRef("a:b")
    assert locate(make_model, tmp_path) == ModelRef(f"{__name__}:make_model", here)
    assert locate(Outer.Inner, tmp_path) == ModelRef(f"{__name__}:Outer.Inner", here)
    # What is installed needs no folder of its own.
    assert locate(nn.Linear, tmp_path) == ModelRef("torch.nn.modules.linear:Linear")
    source = str(ROOT / "src")
    assert locate(api.find, tmp_path) == ModelRef("bsfind.api:find", source)
    assert not list(tmp_path.iterdir())


def test_a_module_that_was_loaded_from_a_file(tmp_path: Path) -> None:
    """Under a name of its own, by which no other process can import it: the file has to do."""
    file = tmp_path / "net.py"
    file.write_text("def make(): pass\n")
    spec = importlib.util.spec_from_file_location("my_net", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {"my_net": module}):
        spec.loader.exec_module(module)
        assert locate(module.make, tmp_path) == ModelRef(f"{file}:make")


def test_what_has_no_name_is_refused(tmp_path: Path) -> None:
    class Local(nn.Linear):
        pass

    def replaced() -> nn.Module:
        return nn.Linear(3, 3)

    replaced.__qualname__ = "make_model"  # as a decorator without `functools.wraps` undone
    for model, said in (
        (lambda: nn.Linear(3, 3), "`test_what_has_no_name_is_refused.<locals>.<lambda>` cannot"),
        (Local, "Local` cannot be imported by its name"),
        (replaced, "is another object than the one that was passed"),
        (Local(3, 3), "this `Local` cannot be handed to another process"),
        (functools.partial(nn.Linear, 3, 3), "a `partial` is not a model"),
        (3, "a `int` is not a model"),
    ):
        with pytest.raises(bsfind.UsageError) as raised:
            locate(model, tmp_path)
        assert said in raised.value.message
        assert raised.value.hint


def test_an_instance_is_pickled(tmp_path: Path) -> None:
    found = locate(Outer.Inner(3, 4), tmp_path)
    assert found == ModelRef(f"{tmp_path}/Inner.py:instance", str(HERE), is_pickled=True)
    seen: dict[str, Any] = {"__file__": f"{tmp_path}/Inner.py"}
    exec((tmp_path / "Inner.py").read_text(), seen)
    assert seen["instance"].out_features == 4


def test_an_instance_on_the_gpu_is_refused(tmp_path: Path) -> None:
    class Tensor:
        device = torch.device("cuda", 0)

    model = nn.Linear(3, 3)
    with (
        mock.patch.object(model, "buffers", return_value=[Tensor()]),
        pytest.raises(bsfind.UsageError, match="is on `cuda` already"),
    ):
        locate(model, tmp_path)


def test_functions() -> None:
    assert callable_name("auto", "loss") == "auto"
    assert callable_name(torch.optim.AdamW, "optimizer") == "AdamW"
    assert callable_name(make_model, "step") == f"{__name__}:make_model"

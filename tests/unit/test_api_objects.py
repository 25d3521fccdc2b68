"""Inputs and models as Python objects: what `bsfind.find` makes of them for another process."""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import pytest
import torch
from torch import nn

import bsfind
from bsfind import api
from bsfind.import_path import parse_import_path, resolve
from bsfind.inputs import input_specs
from bsfind.python.object_paths import ModelRef
from bsfind.python.objects import PassedObjects

ROOT = Path(__file__).parents[2]


# --------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [
        (None, []),
        ((3, 224, 224), ["3,224,224"]),
        ((numpy.int64(3), 4), ["3,4"]),
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
        (torch.zeros(3, dtype=torch.int64, device="meta"), "has no values to take the range from"),
        (torch.tensor([2**63 - 1]), "has to be LOW..HIGH with -9223372036854775808 ≤ LOW < HIGH"),
        (types.SimpleNamespace(dtype="float32", shape=(3, None)), "no shape of integers"),
        ((2**63,), "`9223372036854775808` is larger than a tensor can be"),
        (bsfind.InputSpec(shape=(3.5,)), "`(3.5,)` is not a shape"),  # type: ignore[arg-type]
        (bsfind.InputSpec(shape=(True,)), "`(True,)` is not a shape"),
        (bsfind.InputSpec(shape=(3,), dtype="int8", low=0.5, high=2), "is not of integers"),  # type: ignore[arg-type]
        (bsfind.InputSpec(shape=(3,), dtype="uint8", low=0, high=257), "0 ≤ LOW < HIGH ≤ 256"),
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


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Unpicklable(nn.Linear):
    def __reduce__(self) -> Any:
        raise UnprintableError


class Unlistable(nn.Linear):
    def parameters(self, recurse: bool = True) -> Any:
        raise UnprintableError


class Outer:
    class Inner(nn.Linear):
        pass


HERE = Path(__file__).parent


def test_what_can_be_imported_by_its_name(tmp_path: Path) -> None:
    here = str(HERE)
    passed = PassedObjects(tmp_path)
    assert passed.model("a:b") == ModelRef("a:b")
    assert passed.model(make_model) == ModelRef(f"{__name__}:make_model", here)
    assert passed.model(Outer.Inner) == ModelRef(f"{__name__}:Outer.Inner", here)
    # What is installed needs no folder of its own.
    assert passed.model(nn.Linear) == ModelRef("torch.nn.modules.linear:Linear")
    source = str(ROOT / "src")
    assert passed.model(api.find) == ModelRef("bsfind.api:find", source)
    passed.write()
    assert not passed
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
        assert PassedObjects(tmp_path).model(module.make) == ModelRef(f"{file}:make")


def refused(model: Any, folder: Path) -> bsfind.UsageError:
    def pass_on() -> None:
        passed = PassedObjects(folder)
        passed.model(model)
        passed.write()

    with pytest.raises(bsfind.UsageError) as raised:
        pass_on()
    return raised.value


def test_what_has_no_name_is_refused_without_cloudpickle(tmp_path: Path) -> None:
    class Local(nn.Linear):
        pass

    def replaced() -> nn.Module:
        return nn.Linear(3, 3)

    replaced.__qualname__ = "make_model"  # as a decorator without `functools.wraps` undone
    with mock.patch.dict(sys.modules, {"cloudpickle": None}):
        for model, said in (
            (lambda: nn.Linear(3, 3), "<lambda>` cannot be imported by its name"),
            (Local, "Local` cannot be imported by its name"),
            (replaced, "is another object than the one that was passed"),
            (Local(3, 3), "`Local` cannot be handed to the process that runs the model"),
        ):
            error = refused(model, tmp_path)
            assert said in error.message
            assert "`pip install 'bsfind[notebook]'`" in error.hint


def test_what_cannot_be_passed_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    lock = threading.Lock()

    def guarded() -> nn.Module:
        with lock:
            return nn.Linear(3, 3)

    def make() -> nn.Module:
        return guarded()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still in use
        scripted = torch.jit.script(nn.Linear(3, 3))
    for model, said in (
        (3, "a `int` is not a model"),
        (scripted, "`RecursiveScriptModule` cannot be handed to the process"),
        (Unpicklable(3, 3), "`Unpicklable` cannot be handed to the process"),
        (Unlistable(3, 3), "this `Unlistable` cannot be handed to the process"),
        (make, "`lock`, which `guarded` refers to, cannot be handed to the process"),
    ):
        error = refused(model, tmp_path)
        assert said in error.message
        if model != 3:
            assert error.detail
            assert "make it inside the function that uses it" in error.hint
    with pytest.raises(bsfind.UsageError) as raised:
        PassedObjects(tmp_path).function(torch.optim.SGD(nn.Linear(3, 3).parameters()), "optimizer")
    assert "a function of the parameters" in raised.value.hint


def test_an_instance_is_pickled(tmp_path: Path) -> None:
    passed = PassedObjects(tmp_path)
    found = passed.model(Outer.Inner(3, 4))
    assert found == ModelRef(f"{tmp_path}/passed.py:bsfind_passed.Inner", str(HERE))
    passed.write()
    with mock.patch.dict(sys.modules):
        assert resolve(parse_import_path(found.path)).out_features == 4


def test_functions_share_what_they_refer_to(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    seen: list[int] = []
    passed = PassedObjects(tmp_path)
    paths = [
        passed.function(lambda: seen.append(1), "step"),
        passed.function(lambda: len(seen), "loss"),
    ]
    passed.write()
    with mock.patch.dict(sys.modules):
        append, count = (resolve(parse_import_path(path)) for path in paths)
        append()
        assert (count(), seen) == (1, [])


def test_an_instance_on_the_gpu_is_refused(tmp_path: Path) -> None:
    class Tensor:
        device = torch.device("cuda", 0)

    model = nn.Linear(3, 3)
    with (
        mock.patch.object(model, "buffers", return_value=[Tensor()]),
        pytest.raises(bsfind.UsageError, match="is on `cuda` already"),
    ):
        PassedObjects(tmp_path).model(model)


def test_functions(tmp_path: Path) -> None:
    passed = PassedObjects(tmp_path)
    assert passed.function("auto", "loss") == "auto"
    assert passed.function(torch.optim.AdamW, "optimizer") == "AdamW"
    assert passed.function(make_model, "step") == f"{__name__}:make_model"
    assert not passed

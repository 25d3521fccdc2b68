"""Whose fault an exception is, by the frame that raised it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bsfind.errors import InternalError, TargetError, UntraceableError
from bsfind.records import Assumption
from bsfind.workload.user_errors import is_bsfinds_own, stands_for_torch, user_error

PACKAGE = Path(__file__).parents[2] / "src" / "bsfind"


def function(file: str, body: str, **names: Any) -> Callable[..., Any]:
    """Return a function whose frame is one of a file of bsfind."""
    space: dict[str, Any] = {"torch": torch, **names}
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    exec(compile(f"def made(*args):\n{lines}", str(PACKAGE / file), "exec"), space)
    return space["made"]  # type: ignore[no-any-return]


def error_of(call: Callable[..., Any]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 (whatever it is)
        call()
    return raised.value


def user(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: call()


RULE = "simulation/trace/made_up.py"
STEP = "workload/made_up.py"


@pytest.mark.parametrize(
    "body",
    [
        "return {}['shape']",
        "return nothing",
        "return None.shape",
        "raise RuntimeError('no such thing')",
        "return torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 5))",
        "return torch.ones(2, 3) @ torch.ones(4, 5)",
    ],
)
def test_what_a_frame_of_bsfind_raised_is_its_own(body: str) -> None:
    error = error_of(user(function(RULE, body)))
    assert is_bsfinds_own(error)
    told = user_error(error, doing="batch size 4 in fp32")
    assert type(told) is InternalError
    assert "made_up.py" in told.detail


def test_an_error_of_bsfinds_that_the_model_raises_is_the_models() -> None:
    def model() -> None:
        raise InternalError("mine")

    told = user_error(error_of(model), doing="batch size 4 in fp32")
    assert type(told) is TargetError
    assert "`InternalError: mine` in test_user_errors.py:" in told.message


def test_the_demo_is_a_model_as_any_other() -> None:
    error = error_of(function("demo.py", "raise ValueError('expected 4D input')"))
    assert not is_bsfinds_own(error)
    assert type(user_error(error, doing="batch size 4 in fp32")) is TargetError


def test_the_innermost_frame_decides() -> None:
    def model() -> None:
        raise KeyError("mine")

    rule = function(RULE, "return args[0]()")
    assert not is_bsfinds_own(error_of(lambda: rule(model)))
    broken = function(RULE, "return [][0]")
    assert is_bsfinds_own(error_of(lambda: rule(user(broken))))


def test_the_step_calls_torch_for_the_user() -> None:
    step = function(STEP, "return torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 5))")
    assert not is_bsfinds_own(error_of(step))
    assert is_bsfinds_own(error_of(function(STEP, "return {}['loss']")))


def test_a_function_that_stands_for_torch() -> None:
    calls = stands_for_torch(function(RULE, "return args[0]()"))
    refuses = stands_for_torch(function(RULE, "raise RuntimeError('expected a vector')"))
    mistaken = stands_for_torch(function(RULE, "return no_such_name"))
    product = torch.ones(2, 3).__matmul__
    assert not is_bsfinds_own(error_of(lambda: calls(lambda: product(torch.ones(4, 5)))))
    assert not is_bsfinds_own(error_of(refuses))
    assert is_bsfinds_own(error_of(mistaken))


def test_too_many_calls_and_too_little_memory_are_the_users() -> None:
    def endless() -> None:
        rule(endless)

    rule = function(RULE, "return args[0]()")
    assert not is_bsfinds_own(error_of(endless))
    assert not is_bsfinds_own(error_of(function(RULE, "raise MemoryError")))


@pytest.mark.skipif(torch.version.cuda is not None, reason="of the CPU build")
@pytest.mark.parametrize("name", ["_cuda_nonsense", "_CudaNonsense"])
def test_what_only_a_cuda_build_has(name: str) -> None:
    error = error_of(lambda: getattr(torch._C, name))
    told = user_error(error, doing="building the model")
    assert isinstance(told, UntraceableError)
    assert f"`torch._C.{name}`" in told.message
    assert "test_user_errors.py" in told.message


@pytest.mark.skipif(torch.version.cuda is not None, reason="of the CPU build")
def test_libraries_with_kernels_of_their_own_are_named() -> None:
    space: dict[str, Any] = {"__name__": "bitsandbytes.cextension"}
    lines = "def throw():\n    raise RuntimeError('not available')"
    exec(compile(lines, "/site-packages/bitsandbytes/cextension.py", "exec"), space)
    told = user_error(error_of(space["throw"]), doing="batch size 4 in fp32")
    assert isinstance(told, UntraceableError)
    assert told.message.startswith("`bitsandbytes` runs CUDA code of its own")


def test_texts_do_not_say_meta() -> None:
    def model() -> None:
        raise RuntimeError("modified by an inplace operation: [MetaFloatType [1, 10]]")

    told = user_error(error_of(model), doing="batch size 4 in fp32")
    assert type(told) is TargetError
    assert "[torch.cuda.FloatTensor [1, 10]]" in told.message


# ------------------------------------------------------------------------------------------ hints


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (TypeError("Net.forward() got an unexpected keyword argument 'x'"), "`--input NAME=SHAPE`"),
        (
            RuntimeError(
                "Expected 3D (unbatched) or 4D (batched) input to conv2d, "
                "but got input of size: [4, 2, 3, 8, 8]"
            ),
            "one dimension too many: shapes have no batch dimension",
        ),
        (ValueError("expected 4D input (got 5D input)"), "one dimension too many"),
        (
            ValueError("LSTM: Expected input to be 2D or 3D, got 4D instead"),
            "one dimension too many",
        ),
        (
            AssertionError(
                "query should be unbatched 2D or batched 3D tensor but received 4-D query tensor"
            ),
            "one dimension too many",
        ),
        (ValueError("expected 4D input (got 3D input)"), "do these shapes fit the model?"),
        (
            RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x20 and 21x5)"),
            "do these shapes fit the model?",
        ),
        (
            RuntimeError("mat1 and mat2 must have the same dtype, but got Float and Half"),
            "do these dtypes fit the model?",
        ),
        (
            RuntimeError(
                "Expected all tensors to be on the same device, but found cuda:0 and cpu!"
            ),
            "(`device=x.device`)?",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "torchvision was built for another PyTorch",
        ),
        (IndexError("index out of range: 9, for 5 rows of the embedding"), "LOW..HIGH"),
        (KeyError("a"), ""),
        (ZeroDivisionError("division by zero"), ""),
        (OSError("no such file"), ""),
    ],
)
def test_the_hint_follows_the_kind_of_error(error: Exception, hint: str) -> None:
    told = user_error(error, doing="batch size 4 in fp32", inputs="float32[4, 2]")
    assert isinstance(told, TargetError)
    assert hint in told.hint
    assert bool(hint) == bool(told.hint)


@pytest.mark.parametrize(
    ("owner", "name", "body"),
    [
        (torch.cuda, "synchronize", "torch.cuda.synchronize()"),
        (torch.cuda, "memory_allocated", "return {}['memory']"),
        (torch.Tensor, "backward", "torch.ones(1).backward()"),
        (time, "perf_counter", "import time; time.perf_counter()"),
        (dataclasses, "fields", "import dataclasses; dataclasses.asdict(args[0])"),
    ],
)
def test_what_the_user_s_code_has_replaced_is_not_bsfinds_fault(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, body: str
) -> None:
    monkeypatch.setattr(owner, name, None)
    error = error_of(lambda: function(STEP, body)(Assumption(what="", value="", why="")))
    told = user_error(error, doing="batch size 4")
    monkeypatch.undo()
    assert type(told) is TargetError
    assert f"{owner.__name__}.{name}" in told.message


def test_an_error_in_the_middle_of_one_that_cannot_be_read_is_the_user_s() -> None:
    class NoText(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise ValueError

    def model() -> None:
        raise NoText

    def step() -> None:
        try:
            model()
        finally:
            function(STEP, "return {}['shape']")()

    told = user_error(error_of(step), doing="batch size 4")
    assert type(told) is TargetError


def test_a_long_traceback_is_shortened() -> None:
    def model() -> None:
        raise ValueError("\n".join(["x" * 50_000] * 1000))

    told = user_error(error_of(model), doing="batch size 4")
    assert len(told.detail) < 100_000
    assert len(told.message) < 1000

"""Puts off imports of torch's compiler and of symbolic shapes until something compiles.

The first optimizer, the first checkpoint of activations, and the first meta kernel that is written in
Python import `torch._dynamo` for two marks on functions, which tell the compiler to leave them alone
(torch/_compile.py, torch/optim/optimizer.py, torch 2.6-2.14). Meta kernels written in Python also import
`sympy` to tell its numbers from Python's (`elementwise_dtypes` in torch/_prims_common/__init__.py), and
`torch.fx.experimental.symbolic_shapes` for conditions on sizes that are symbolic only in a compiler
(`_check_with` in torch/__init__.py). torchvision, which timm imports, asks the compiler whether there is a
Triton (`is_compile_supported`; torchvision/ops/roi_align.py, torchvision 0.28). Together these imports
take longer than torch's own, in every process. Until anything else of them is asked for, a module with the
little that is used stands in the place of each.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

_COMPILER = "torch._dynamo"
_COMPILER_UTILS = "torch._dynamo.utils"
_NUMBERS = "sympy"
_SHAPES = "torch.fx.experimental.symbolic_shapes"


def postpone_imports() -> None:
    """Let the imports of these modules cost nothing for now; those that were imported stay as they are."""
    for name, known in _KNOWN.items():
        if name not in sys.modules:
            sys.modules[name] = _Later(name, known)


class _Later(ModuleType):
    """Becomes the real module as soon as it is asked for more than it has.

    Args:
        known: what is asked for where nothing compiles.
    """

    def __init__(self, name: str, known: _Known) -> None:
        super().__init__(name)
        self._known = known

    def __getattr__(self, name: str) -> Any:
        # What walks through all modules asks for such names; `__path__` is the question of an import.
        if name.startswith("__") and not (name == "__path__" and self._known.is_package):
            raise AttributeError(name)
        # Others may do anything with what they find, such as derive a class from it.
        asker = str(sys._getframe(1).f_globals.get("__name__"))
        if name in self._known.attributes and f"{asker}.".startswith(f"{self._known.asker}."):
            return self._known.attributes[name]
        return getattr(_real(self.__name__), name)


class _Known(NamedTuple):
    """What stands in the place of a module."""

    asker: str
    """The module, or package, that gets the attributes; others get the real ones."""
    attributes: Mapping[str, Any]
    is_package: bool = True


def _real(name: str) -> Any:
    """Import a real module in place of the one that stands for it, and for those in it."""
    package = name.rpartition(".")[0]
    if isinstance(sys.modules.get(package), _Later):
        _real(package)
    for postponed in (name, *(known for known in _KNOWN if known.startswith(f"{name}."))):
        if isinstance(sys.modules.get(postponed), _Later):
            del sys.modules[postponed]
    return importlib.import_module(name)


# ------------------------------------------------------------------------------ torch._dynamo


def _disable(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Return a function that the compiler leaves alone, once there is one."""
    if fn is None:
        return lambda function: _disable(function, *args, **kwargs)
    if not isinstance(fn, FunctionType):
        return _real(_COMPILER).disable(fn, *args, **kwargs)
    disabled: Callable[..., Any] | None = None

    def left_alone(*given: Any, **named: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if isinstance(sys.modules.get(_COMPILER), _Later):
                return fn(*given, **named)
            disabled = _real(_COMPILER).disable(fn, *args, **kwargs)
        return disabled(*given, **named)

    return left_alone


def _is_compile_supported(device_type: Any) -> Any:
    """Return what the compiler says once it is asked."""
    return _real(_COMPILER_UTILS).is_compile_supported(device_type)


def _graph_break(*_: Any, **__: Any) -> None:
    """Do nothing: there is no graph."""


# --------------------------------------------------------------------- sympy, symbolic shapes


class _NoNumber(type):
    """The type of a class that has no instances: nothing is a number of sympy before sympy is there."""

    def __instancecheck__(cls, instance: object) -> bool:
        return False


def _of_plain(name: str, answered: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of symbolic shapes for Python's own numbers; the real one answers for all else."""

    def answer(*values: Any) -> Any:
        if all(type(value) in (bool, int) for value in values):
            return answered(*values)
        return getattr(_real(_SHAPES), name)(*values)

    return answer


def _sym_eq(one: Any, other: Any) -> Any:
    """Return whether two sizes, or two shapes, are equal."""
    shapes = [(size,) if type(size) is int else size for size in (one, other)]
    if all(isinstance(shape, (tuple, list)) and {*map(type, shape)} <= {int} for shape in shapes):
        return tuple(shapes[0]) == tuple(shapes[1])
    return _real(_SHAPES).sym_eq(one, other)


def _itself(value: Any) -> Any:
    return value


_PLAIN: Mapping[str, Callable[..., Any]] = {
    "_advise_is_size": lambda _: None,
    "expect_true": _itself,
    "guard_or_false": _itself,
    "guard_or_true": _itself,
    "guard_size_oblivious": _itself,
    "guarding_hint_or_throw": _itself,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "statically_known_true": _itself,
    "sym_and": lambda *conditions: all(conditions),
    "sym_or": lambda *conditions: any(conditions),
}

_KNOWN: Mapping[str, _Known] = {
    _COMPILER: _Known("torch", {"disable": _disable, "graph_break": _graph_break}),
    _COMPILER_UTILS: _Known(
        "torchvision", {"is_compile_supported": _is_compile_supported}, is_package=False
    ),
    _NUMBERS: _Known("torch._prims_common", {"Basic": _NoNumber("Basic", (), {})}),
    _SHAPES: _Known(
        "torch",
        {name: _of_plain(name, answered) for name, answered in _PLAIN.items()}
        | {"sym_eq": _sym_eq},
        is_package=False,
    ),
}

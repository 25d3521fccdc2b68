"""Operators of tensors that wrap others, as shards of parameters do (`DTensor`).

Their operators go to the class's own `__torch_dispatch__`, and its operators on what it wraps come to the
dispatcher of the trace. A fallback is not found where such a tensor, or a mode, is about:
`python_op_registration_trampoline` of torch/csrc/utils/python_dispatch.cpp (torch 2.6-2.13) looks among the
registrations of single operators only. So each operator has one, which costs a quarter of a second and a
little at each call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bsfind.simulation.trace.calls import Args, Kwargs
from bsfind.simulation.trace.torch_private import (
    BELOW_FAKE,
    PYTHON_KEYS,
    FakeTensor,
    FakeTensorMode,
    dispatch_modes,
    has_fake_kernel,
    operator_names,
    replacing,
    unload,
    without_fake,
)

if TYPE_CHECKING:
    from bsfind.simulation.trace.dispatch import Dispatcher

_NAMESPACES = ("aten", "c10d", "fsdp", "_c10d_functional", "prims")


@contextlib.contextmanager
def wrapped_tensors(dispatcher: Dispatcher) -> Iterator[None]:
    """Let operators on wrapped tensors reach the dispatcher while inside.

    Args:
        dispatcher: runs the operators on what they wrap; it is active.
    """
    libraries: dict[str, torch.library.Library] = {}
    try:
        for name in operator_names():
            namespace, _, rest = name.partition("::")
            if namespace not in _NAMESPACES or has_fake_kernel(name):
                continue
            operator = _operator(namespace, rest)
            if operator is None:
                continue
            library = libraries.get(namespace)
            if library is None:
                library = torch.library.Library(namespace, "IMPL")  # type: ignore[no-untyped-call]
                libraries[namespace] = library
            kernel = _kernel(dispatcher, operator)
            library.impl(rest, kernel, "Fake", with_keyset=True)  # type: ignore[no-untyped-call]
        with _propagation_unseen():
            yield
    finally:
        for library in libraries.values():
            unload(library)


def _operator(namespace: str, name: str) -> Any:
    """Return an operator; None where Python has none of this name."""
    packet, _, overload = name.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
    except (AttributeError, RuntimeError):
        return None


def _kernel(dispatcher: Dispatcher, operator: Any) -> Callable[..., Any]:
    """Return what runs instead of an operator."""
    caught = dispatcher.caught

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if dispatch_modes():
            return operator.redispatch(keys & BELOW_FAKE, *args, **kwargs)
        wraps = _wrapper(args, kwargs)
        if wraps is None:
            return caught(operator, *args, **kwargs)
        if issubclass(wraps, FakeTensor):
            return operator.redispatch(keys & BELOW_FAKE, *args, **kwargs)
        return operator.redispatch(PYTHON_KEYS, *args, **kwargs)

    return kernel


_PLAIN = (Tensor, torch.nn.Parameter)


def _wrapper(args: Args, kwargs: Kwargs) -> type | None:
    """Return the class of the first wrapped tensor among arguments, those of lists too; None without one."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        kind = type(value)
        if kind is list or kind is tuple:
            if value and (found := _wrapper(value, {})) is not None:
                return found
        elif kind not in _PLAIN and isinstance(value, Tensor) and _wraps(kind):
            return kind
    return None


def _wraps(kind: type) -> bool:
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[attr-defined]


@contextlib.contextmanager
def _propagation_unseen() -> Iterator[None]:
    """Let shapes under a `FakeTensorMode`, as `DTensor` works them out, be nobody's memory."""
    own = FakeTensorMode.__torch_dispatch__

    def unseen(*args: Any, **kwargs: Any) -> Any:
        with without_fake():
            return own(*args, **kwargs)

    with replacing("__torch_dispatch__", FakeTensorMode)(unseen):
        yield

"""What the user's code keeps between steps, set back to what it was when the model had been loaded.

A training run begins with a fresh model, and so does each trial: step counters, queues, caches and lists of
past batches decide what a step runs and how much memory it needs. To build the model again takes seconds or
minutes. So its Python objects are noted once, and set back after each trial.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from bsfind.workload.user_errors import is_user_file

_LONGEST = 4096
"""Items of longer containers are set back, but not looked into: such a container holds data."""

_LARGEST_COPY = 64 << 20
"""Bytes of the largest tensor whose values are copied."""

_MISSING = object()
_CONTAINERS = (dict, list, set, deque, bytearray)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_OF_TORCH = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
_NOT_THE_USERS = {"bsfind", "torch"}

CachedFunction: Any = type(functools.lru_cache(len))
"""The class of functions that `functools.lru_cache` and `functools.cache` have made."""


class _Kept:
    """A tensor on the GPU that is not held: the model may replace it, and its memory is free then.

    Args:
        tensor: the tensor.
        values: reads and writes its values.
    """

    def __init__(self, tensor: torch.Tensor, values: DeviceValues) -> None:
        self._tensor = weakref.ref(tensor)
        self._values = values
        self._copy = values.read(tensor) if _is_copied(tensor) else None

    def get(self) -> Any:
        """Return the tensor with its values, or another one like it; `_MISSING` if neither is left."""
        tensor = self._tensor()
        if tensor is None:
            if self._copy is None or not self._values.are_whole:
                return _MISSING
            tensor = self._copy.to(self._values.device)
            self._tensor = weakref.ref(tensor)
        elif self._copy is not None:
            self._values.write(tensor, self._copy)
        return tensor


class _Contents:
    """What a container held.

    Args:
        container: the container.
        keys: of a dict; None: it is another container.
        items: the items; instead of a tensor on the GPU, its `_Kept`.
    """

    __slots__ = ("_container", "_has_kept", "_items", "_keys")

    def __init__(self, container: Any, keys: list[Any] | None, items: list[Any]) -> None:
        self._container, self._keys, self._items = container, keys, items
        self._has_kept = any(type(item) is _Kept for item in items)

    def restore(self) -> bool:
        """Let the container hold what it held; False if some of that is gone."""
        container, keys, items = self._container, self._keys, self._items
        if not items and not container:
            return True
        if self._has_kept:
            items = [item.get() if type(item) is _Kept else item for item in items]
            if any(item is _MISSING for item in items):
                return False
        if keys is None:
            if not _are_same(container, items):
                container.clear()
                (container.update if isinstance(container, set) else container.extend)(items)
        elif not (_are_same(container, keys) and _are_same(container.values(), items)):
            container.clear()
            for key, item in zip(keys, items, strict=True):
                container[key] = item
        return True


class DeviceValues:
    """Reads and writes the values of tensors on a device.

    Args:
        device: the device.

    Attributes:
        are_whole: whether a tensor can be made from what was read.
    """

    are_whole = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return a copy of a tensor in the host's memory; None if its values are not known."""
        return None if tensor.is_meta else tensor.detach().cpu()

    def write(self, tensor: torch.Tensor, copy: torch.Tensor) -> None:
        """Give a tensor the values of a copy."""
        _write(tensor, copy)


class State:
    """The Python objects of a model and of the user's code beside it, as they were when this was made.

    Set back are attributes of modules and of other objects of theirs, what containers hold, values of
    buffers, which parameters require gradients, variables of closures and, of the user's own Python files
    and classes, numbers and containers. Not set back are weights, flags of whole files (that something was
    registered, say), and what Python cannot copy, such as iterators.

    Args:
        model: the model on its device.
        values: reads and writes values of tensors on the device.
        functions: functions of the user's that take part in a step.
    """

    def __init__(
        self, model: nn.Module, values: DeviceValues, functions: Iterable[Any] = ()
    ) -> None:
        self._values = values
        self._undo: list[Callable[[], bool]] = []
        self._containers: list[_Contents] = []
        self._seen: dict[int, Any] = {}
        self._kept: dict[int, _Kept] = {}
        self._waiting: list[Any] = [model, *functions]
        self._undo += [
            _calling(_require, weakref.ref(parameter), parameter.requires_grad)
            for parameter in model.parameters()
        ]
        for module in _modules_of_the_user():
            self._note_names(vars(module), vars(module).__setitem__, vars(module).__delitem__)
        while self._waiting:
            self._note(self._waiting.pop())
        self._seen.clear()

    def restore(self) -> bool:
        """Set everything back; False if that is not possible, and the model has to be built anew."""
        is_whole = True
        for undo in (*self._undo, *(contents.restore for contents in self._containers)):
            try:
                is_whole = undo() and is_whole
            except Exception:  # a container of the user's that cannot be filled, a poisoned context
                is_whole = False
        return is_whole

    def _note(self, value: Any) -> None:
        if _is(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value if not _is(value, torch.Tensor) else None
        if _is(value, torch.Tensor):
            self._note_tensor(value)
        elif _is(value, (tuple, frozenset)):
            self._wait_for(value)
        elif _is(value, _CONTAINERS):
            self._note_container(value)
        elif _is(value, (types.FunctionType, types.MethodType)):
            self._note_function(value)
        elif _is(value, random.Random):
            state = value.getstate()
            self._undo.append(_calling(value.setstate, state))
        elif _is(value, torch.Generator):
            of_torch = value.get_state()
            self._undo.append(_calling(value.set_state, of_torch))
        elif _is(value, type):
            if _is_of_the_user(_module_of(value)):
                self._note_names(
                    dict(vars(value)),
                    lambda name, item: setattr(value, name, item),
                    lambda name: delattr(value, name),
                    lambda: dict(vars(value)),
                )
        elif _is(value, _OF_TORCH) or _may_have_state(_module_of(type(value))):
            with contextlib.suppress(AttributeError):  # there are slots
                attributes = object.__getattribute__(value, "__dict__")
                if type(attributes) is dict:
                    self._note_container(attributes)
            if _is(value, nn.Module):
                self._waiting.append(type(value))

    def _wait_for(self, values: Iterable[Any]) -> None:
        self._waiting += [value for value in values if not _is(value, _PLAIN)]

    def _note_tensor(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            self._undo.append(_calling(self._kept_of(tensor).get))
        elif _is_copied(tensor):
            # Whatever its version counter says: the kernels of batch norm leave that as it is.
            self._undo.append(_calling(_write, tensor, tensor.detach().clone()))

    def _kept_of(self, tensor: torch.Tensor) -> _Kept:
        kept = self._kept.get(id(tensor))
        if kept is None:
            kept = self._kept[id(tensor)] = _Kept(tensor, self._values)
        return kept

    def _held(self, value: Any) -> Any:
        """Return what stands for an item of a container: the item itself, or a tensor that is not held."""
        is_on_device = _is(value, torch.Tensor) and value.device.type != "cpu"
        return self._kept_of(value) if is_on_device else value

    def _note_container(self, container: Any) -> None:
        keys = list(container) if _is(container, dict) else None
        values = list(container.values() if _is(container, dict) else container)
        if len(values) <= _LONGEST:
            self._wait_for(values)
        self._containers.append(_Contents(container, keys, [self._held(item) for item in values]))

    def _note_function(self, function: Any) -> None:
        if _is(function, types.MethodType):
            self._wait_for((function.__self__, function.__func__))
            return
        if not _is_of_the_user(function.__module__ or ""):
            return
        self._wait_for((function.__dict__, function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                value = cell.cell_contents
                self._wait_for((value,))
                if _is(value, _PLAIN):
                    self._undo.append(_calling(setattr, cell, "cell_contents", value))

    def _note_names(
        self,
        names: dict[str, Any],
        put: Callable[[str, Any], object],
        remove: Callable[[str], object],
        current: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Note numbers and containers of a namespace, and look into its functions and classes.

        New ones are removed, unless another object is new too, which stays: they may belong together, as an
        iterator and the batch size that it was made for.
        """
        before = {name: value for name, value in names.items() if _is_set_back(name, value)}
        objects = {name: id(value) for name, value in names.items() if _stays(name, value)}
        self._wait_for(before.values())
        for value in names.values():
            function = value.__func__ if _is(value, (staticmethod, classmethod)) else value
            if _is(function, (types.FunctionType, type)):
                self._waiting.append(function)
            elif _is(function, CachedFunction):
                self._undo.append(_calling(function.cache_clear))

        def undo() -> bool:
            now = current() if current is not None else names
            new = [name for name, value in now.items() if _is_set_back(name, value)]
            if all(
                objects.get(name) == id(value) for name, value in now.items() if _stays(name, value)
            ):
                for name in set(new).difference(before):
                    remove(name)
            for name, value in before.items():
                if now.get(name, _MISSING) is not value:
                    put(name, value)
            return True

        self._undo.append(undo)


def _are_same(some: Collection[Any], others: Collection[Any]) -> bool:
    """Tell whether two collections hold the same objects: equality of tensors is another thing."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _calling(function: Callable[..., object], *args: Any) -> Callable[[], bool]:
    def undo() -> bool:
        function(*args)
        return True

    return undo


def _require(parameter: weakref.ref[nn.Parameter], required: bool) -> None:
    """Let a parameter require gradients or not, if the model still has it."""
    tensor = parameter()
    if tensor is not None and tensor.requires_grad != required:
        tensor.requires_grad_(required)


def _write(tensor: torch.Tensor, copy: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(copy)


def _is_copied(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's values are set back: not those of weights, which training changes."""
    is_weight = tensor.requires_grad or isinstance(tensor, nn.Parameter) or not tensor.is_leaf
    if is_weight or tensor.layout != torch.strided or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= _LARGEST_COPY


def _is_set_back(name: str, value: Any) -> bool:
    """Tell whether a variable of a file or a class may be state; a flag often tells what cannot be undone."""
    if name.startswith("__"):
        return False
    return _is(value, (int, float, complex, *_CONTAINERS, tuple)) and not _is(value, bool)


def _stays(name: str, value: Any) -> bool:
    """Tell whether a variable of a file or a class is an object that is not set back."""
    return not (name.startswith("__") or _is(value, _PLAIN) or _is_set_back(name, value))


def _is(value: object, kinds: type | tuple[type, ...]) -> bool:
    """Tell whether an object is of a type, without asking it: `__class__` may be code of the user's."""
    return issubclass(type(value), kinds)


def _module_of(cls: type) -> str:
    """Return the name of a class's module, whatever its metaclass does."""
    module: str = type.__getattribute__(cls, "__module__")
    return module


@functools.cache
def _may_have_state(module: str) -> bool:
    """Tell whether objects of a module's classes are looked into: not those of Python and of PyTorch."""
    root = module.partition(".")[0]
    is_foreign = root in sys.stdlib_module_names or root in _NOT_THE_USERS
    return module == types.SimpleNamespace.__module__ or not is_foreign


@functools.cache
def _is_of_the_user(module: str) -> bool:
    """Tell whether a module is a file of the user's, and not of an installed package."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return isinstance(file, str) and is_user_file(file)


def _modules_of_the_user() -> Iterator[types.ModuleType]:
    for name, module in list(sys.modules.items()):
        if _is_of_the_user(name):
            yield module

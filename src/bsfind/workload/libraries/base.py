"""What the modules of the libraries have in common: importing a library, and what a model is called with."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError
from bsfind.inputs import DTYPES, InputSpec

MAXIMUM_LENGTH = 1024
"""Tokens for each sample, where the model takes as many and no other length was asked for."""

IMAGE_SIZE = 224
"""Height and width of images, pixels, where the model names none."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Inputs of a model that the user did not describe: their shapes, or a function that makes them.

    Attributes:
        inputs: the inputs; none where a function makes them.
        why: where they are from, without a full stop.
        follows: the options among `seq_len` and `image_size` that change them.
        batch_fn: import path of the function, in `bsfind.batches`.
        batch_args: its keyword arguments.
    """

    inputs: tuple[InputSpec, ...] = ()
    why: str
    follows: frozenset[str] = frozenset()
    batch_fn: str | None = None
    batch_args: tuple[tuple[str, str], ...] = ()


def import_library(name: str) -> Any:
    """Return a library of models.

    Raises:
        TargetError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    raise TargetError(
        f"`{name}` is not installed", hint=f"`pip install {name}`, where bsfind is installed"
    )


def refuse_weights(argument: str, value: Any) -> None:
    """Refuse an argument that asks for pretrained weights.

    Raises:
        TargetError: it does.
    """
    if value not in (None, False):
        raise TargetError(
            "weights are not needed: they take the same memory whatever their values",
            hint=f"leave `--model-arg {argument}={value}` out",
        )


def unknown_name(library: str, name: str, known: Collection[str]) -> TargetError:
    """Return the error that a library has no model of a name."""
    nearest = difflib.get_close_matches(name, known, n=3)
    return TargetError(
        f"{library} has no model `{name}`",
        hint=f"did you mean {' or '.join(f'`{library}:{other}`' for other in nearest)}?"
        if nearest
        else "",
    )


def is_of(model: Any, library: str, class_name: str = "") -> bool:
    """Tell whether a class of a library is among the classes of a model.

    Args:
        model: the model.
        library: the library's package.
        class_name: the name of the class; "": any.
    """
    return any(
        cls.__module__.partition(".")[0] == library and class_name in ("", cls.__name__)
        for cls in type(model).__mro__
    )


def arguments_of(model: nn.Module) -> dict[str, bool]:
    """Return the arguments of `forward` by name, and whether a call can go without them."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {
        p.name: p.default is not p.empty
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def batches_of(function: str, why: str, **arguments: Any) -> Proposal:
    """Return the batches of a function in `bsfind.batches` that makes images and what is in them.

    Args:
        function: its name.
        why: what the arguments follow from.
        arguments: its keyword arguments; those that are None or False are left out.
    """
    given = {k: v for k, v in arguments.items() if v is not None and v is not False}
    return Proposal(
        why=why,
        follows=frozenset(("image_size",)),
        batch_fn=f"bsfind.batches:{function}",
        batch_args=tuple((name, str(value)) for name, value in given.items()),
    )


def floats(name: str | None, *shape: int) -> InputSpec:
    """Return an input of random numbers."""
    return InputSpec(name=name, shape=shape)


def integers(name: str | None, high: int, *shape: int, low: int = 0) -> InputSpec:
    """Return an input of integers, low ≤ x < high."""
    return InputSpec(name=name, shape=shape, dtype="int64", low=low, high=high)


def input_like(example: Any, name: str | None) -> InputSpec | None:
    """Return the input of which some samples are given; None if they do not say what it is."""
    if not isinstance(example, torch.Tensor) or example.dim() == 0 or not example.numel():
        return None
    dtype = str(example.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        return None
    spec = InputSpec(name=name, shape=tuple(example.shape[1:]), dtype=dtype)
    if DTYPES[dtype] != "int":
        return spec
    if example.is_meta:
        return None
    return replace(spec, low=int(example.min()), high=int(example.max()) + 1)


def height_and_width(size: Any) -> tuple[int, int] | None:
    """Return the size of images as libraries write it: a number, or height and width."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and 1 <= len(size) <= 2:
        return int(size[0]), int(size[-1])
    return None


def first_of(config: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a configuration that are set, with their names."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None:
            yield name, value

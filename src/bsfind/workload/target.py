"""The user's model: found by its import path and built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from bsfind.errors import TargetError
from bsfind.import_path import parse_import_path, parse_value, resolve
from bsfind.workload.blame import stands_for_torch


def keyword_arguments(pairs: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the values of repeated `KEY=VALUE` options.

    Raises:
        TargetError: a value of the form `pkg.mod:attr()` names something that does not exist.
    """
    return {name: parse_value(text) for name, text in pairs}


@stands_for_torch
def build_model(target: str, model_args: Mapping[str, Any]) -> nn.Module:
    """Return the model that `target` names: a class, a factory, or an instance.

    Args:
        target: `package.module:attr` or `path/file.py:attr`.
        model_args: keyword arguments for the class or the factory.

    Raises:
        TargetError: there is no such object, or it gives no `nn.Module`.
        Exception: whatever the user's code raises.
    """
    found = resolve(parse_import_path(target))
    if isinstance(found, nn.Module):
        if model_args:
            raise TargetError(
                f"`{target}` is an instance of `{type(found).__name__}` already",
                hint="`--model-arg` needs a class or a function; leave it out for an instance",
            )
        return found
    if not callable(found):
        raise TargetError(
            f"`{target}` is of type `{type(found).__name__}`, not a model",
            hint="name an `nn.Module` class, a function that returns one, or an instance",
        )
    _check_arguments(found, target, model_args)
    model = found(**model_args)
    if not isinstance(model, nn.Module):
        raise TargetError(
            f"`{target}` returned `{type(model).__name__}`, not an `nn.Module`",
            hint="name an `nn.Module` class, a function that returns one, or an instance",
        )
    return model


def _check_arguments(factory: Any, target: str, model_args: Mapping[str, Any]) -> None:
    """Refuse a call that cannot work before the user's code sees it, with a hint."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**model_args)
    except TypeError as error:
        required = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.name not in model_args
        ]
        hint = f"`{target.rpartition(':')[2]}{signature}`"
        if required:
            hint = f"pass {' '.join(f'`--model-arg {name}=…`' for name in required)}"
        raise TargetError(f"cannot call `{target}`: {error}", hint=hint) from None

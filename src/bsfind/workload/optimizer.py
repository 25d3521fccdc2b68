"""The optimizer: a class of torch.optim, or the user's."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError, UsageError
from bsfind.import_path import is_import_path, resolve_function
from bsfind.workload.user_errors import stands_for_torch


@stands_for_torch
def make_optimizer(name: str, arguments: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Return a fresh optimizer of the model's trainable parameters.

    Args:
        name: `adamw`, `sgd`, any class of torch.optim (case ignored), or `pkg.mod:fn`, called with
            the list of parameters.
        arguments: keyword arguments.
        model: the model.

    Raises:
        UsageError: torch.optim has no such optimizer, or it is LBFGS, or incomplete.
        TargetError: the user's function gives none, or the model has nothing to train.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise TargetError(
            "the model has no parameter that requires a gradient",
            hint="pass `--mode infer` to find the largest batch of the forward pass",
        )
    factory = _factory(name)
    if name.lower() == "sgd" and "lr" not in arguments and _needs_lr(factory):
        arguments = {"lr": 1e-3, **arguments}
    optimizer = factory(parameters, **arguments)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TargetError(
            f"`{name}` returned `{type(optimizer).__name__}`, not a `torch.optim.Optimizer`"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "LBFGS evaluates the loss several times in a step, which the reference step does not",
            hint="`--optimizer adamw`, or another first-order optimizer",
        )
    check_is_complete(optimizer)
    return optimizer


def check_is_complete(optimizer: torch.optim.Optimizer) -> None:
    """Make sure that the steps and the state of an optimizer can be followed.

    Raises:
        UsageError: they cannot: its class leaves out `torch.optim.Optimizer.__init__`, as torchao's
            `CPUOffloadOptimizer` does.
    """
    if not hasattr(optimizer, "state"):
        name = type(optimizer).__name__
        raise UsageError(
            f"`{name}` has no `state` of its own, so that its steps cannot be followed",
            hint="where it keeps its state on the CPU, `--optimizer sgd`, which has none, takes about the "
            "same memory on the GPU; where its gradients go to the CPU too, more than the real one",
        )


def _needs_lr(factory: Callable[..., Any]) -> bool:
    return inspect.signature(factory).parameters["lr"].default is inspect.Parameter.empty


def _factory(name: str) -> Callable[..., Any]:
    if is_import_path(name):
        return resolve_function(name, "an optimizer")
    by_lower_case = {
        attr.lower(): value
        for attr, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    found = by_lower_case.get(name.lower())
    if found is None:
        nearest = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
        hint = f"did you mean `{nearest[0]}`?" if nearest else f"one of {', '.join(by_lower_case)}"
        raise UsageError(f"torch.optim has no optimizer `{name}`", hint=hint)
    return found

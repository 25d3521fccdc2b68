"""The loss of a step: computes the scalar that is differentiated from the model's output."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bsfind.errors import TargetError
from bsfind.import_path import is_import_path, parse_import_path, resolve
from bsfind.workload.criteria import Criterion, Kind, Targets, Term, class_dimension
from bsfind.workload.inputs import Batch
from bsfind.workload.outputs import Path, float_leaves, named, tensor_at
from bsfind.workload.user_errors import stands_for_torch

TermsOf = Callable[[Any, Batch], Sequence[Term]]
"""Returns the terms of the loss of an output."""


class Loss:
    """Computes a scalar loss from outputs, in the steps of one trial.

    Targets have a shape that follows from the output's: so in the first step of a trial they are made
    after the forward pass, in later steps with the inputs, as a data loader would. The first step has
    neither gradients nor optimizer state of an earlier one, so its order does not change the peak.
    """

    def make_targets(self) -> None:
        """Allocate the targets of the next step, if the loss has targets whose shape is known."""

    def release_targets(self) -> None:
        """Release the targets of the last step."""

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The targets of this step that are allocated."""
        return ()

    def is_of(self, output: Any) -> bool:
        """Tell whether an output of evaluation mode has what the loss is computed from."""
        return True

    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the scalar loss of the model's output for a batch."""
        raise NotImplementedError


class FunctionLoss(Loss):
    """The user's own function of the output."""

    def __init__(self, function: Callable[[Any], torch.Tensor]) -> None:
        self._function = function

    @stands_for_torch
    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the function's value for the output."""
        return self._function(output)


class LossOfTerms(Loss):
    """The sum of terms, each of a tensor of the output and its synthetic targets.

    Args:
        terms_of: called with the first output of the trial.
    """

    def __init__(self, terms_of: TermsOf) -> None:
        self._terms_of = terms_of
        self._terms: Sequence[Term] | None = None
        self._needed: list[Targets | None] = []
        self._targets: dict[Targets, torch.Tensor] = {}

    def make_targets(self) -> None:
        """Allocate targets like those of the first step; terms with equal targets share them."""
        needed = dict.fromkeys(targets for targets in self._needed if targets is not None)
        self._targets = {targets: targets.make() for targets in needed}

    def release_targets(self) -> None:
        """Release the targets of the last step."""
        self._targets = {}

    @property
    def targets(self) -> Sequence[torch.Tensor]:
        """The targets of this step that are allocated."""
        return list(self._targets.values())

    def is_of(self, output: Any) -> bool:
        """Tell whether an output has the tensors of the terms (see `Loss.is_of`)."""
        try:
            for term in self._terms or ():
                tensor_at(output, term.path)
        except TargetError:
            return False
        return True

    def __call__(self, output: Any, batch: Batch) -> torch.Tensor:
        """Return the sum of the terms."""
        if self._terms is None:
            self._terms = self._terms_of(output, batch)
        tensors = [tensor_at(output, term.path) for term in self._terms]
        needed = [term.targets(scores) for term, scores in zip(self._terms, tensors, strict=True)]
        made = all(targets is None or targets in self._targets for targets in needed)
        if needed != self._needed or not made:  # the first step, or one with another number of rows
            self._needed = needed
            self.make_targets()
        values = [
            term.loss(
                scores,
                None if targets is None else self._targets[targets],
                [tensor_at(output, path) for path in term.others],
            )
            for term, scores, targets in zip(self._terms, tensors, needed, strict=True)
        ]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total


def make_loss(name: str) -> Loss:
    """Return the loss of `--loss`, unless that is `auto` (see `loss_choice`).

    Raises:
        TargetError: the function does not exist.
        ValueError: neither `cross-entropy`, `mse` or `mean`, nor an import path.
    """
    known: dict[str, TermsOf] = {
        "cross-entropy": functools.partial(_of_main_tensor, "cross-entropy"),
        "mse": functools.partial(_of_main_tensor, "mse"),
        "mean": lambda output, _: mean_of(output),
    }
    if name in known:
        return LossOfTerms(known[name])
    if not is_import_path(name):
        raise ValueError(f"`{name}` is not a loss")
    function = resolve(parse_import_path(name))
    if isinstance(function, type):
        function = function()
    if not callable(function):
        raise TargetError(f"`{name}` is of type `{type(function).__name__}`, not a function")
    _check_arguments(name, function)
    return FunctionLoss(function)


def _check_arguments(name: str, function: Callable[..., Any]) -> None:
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # a function that is written in C
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TargetError(
            f"`{name}` cannot be called as `fn(output)`: {error}",
            hint="it gets the model's output and nothing else, and makes the targets itself; "
            "`--loss cross-entropy` and `--loss mse` are given synthetic targets",
        ) from None


def _of_main_tensor(kind: Kind, output: Any, batch: Batch) -> Sequence[Term]:
    """Return the term of one criterion between the output's main tensor and targets."""
    path, scores = _main_tensor(output)
    class_dim = 1
    if kind == "cross-entropy":
        if scores.dim() < 2:
            raise TargetError(
                f"cross-entropy needs class scores, the output has shape {list(scores.shape)}",
                hint="pass `--loss auto`, or a loss of your own: `--loss pkg.mod:fn`",
            )
        class_dim, _ = class_dimension(scores, batch.tensors())
    criterion = Criterion(kind=kind, class_dim=class_dim)
    return [Term(path=path, criterion=criterion, shape=tuple(scores.shape))]


def mean_of(output: Any) -> list[Term]:
    """Return a term for the mean of each of an output's floating tensors.

    Raises:
        TargetError: the output has no floating tensor.
    """
    found = float_leaves(output)
    if not found:
        raise TargetError(
            f"the model returned `{type(output).__name__}` without any floating tensor to train on",
            hint="pass `--loss pkg.mod:fn` (called with the output) or `--step pkg.mod:fn`",
        )
    return [
        Term(path=path, criterion=Criterion(kind="mean"), shape=tuple(tensor.shape))
        for path, tensor in found
    ]


def _main_tensor(output: Any) -> tuple[Path, torch.Tensor]:
    """Return the output's `logits`, or its first floating tensor, with the path."""
    logits = named(output, "logits")
    if logits is not None:
        return ("logits",), logits
    found = float_leaves(output)
    if not found:
        raise TargetError(
            f"the model returned `{type(output).__name__}` without any floating tensor"
        )
    return found[0]

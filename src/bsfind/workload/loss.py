"""The loss: from the model's output to the scalar that is differentiated (see DESIGN §5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from bsfind.errors import TargetError
from bsfind.import_path import is_import_path, parse_import_path, resolve
from bsfind.workload.blame import stands_for_torch

__all__ = ["Loss", "make_loss"]


class Loss:
    """Turns outputs into a scalar loss.

    Losses with targets need the output's shape to make them: in the first step of a trial they are
    made after the forward pass, later ones with the inputs, as a data loader would.
    """

    def make_targets(self, batch_size: int) -> None:
        """Allocate the targets of the next step, if the loss has targets and knows their shape."""

    def release_targets(self) -> None:
        """Let go of the targets of the last step."""

    @property
    def targets(self) -> torch.Tensor | None:
        """The targets of this step, if the loss has targets and made them."""
        return None

    def __call__(self, output: Any) -> torch.Tensor:
        """Return the scalar loss of the model's output."""
        raise NotImplementedError


class _FunctionLoss(Loss):
    def __init__(self, function: Callable[[Any], torch.Tensor]) -> None:
        self._function = function

    @stands_for_torch
    def __call__(self, output: Any) -> torch.Tensor:
        return self._function(output)


class _TargetedLoss(Loss):
    """A loss between the output and a synthetic target of matching shape."""

    def __init__(self) -> None:
        self._make: Callable[[int], torch.Tensor] | None = None
        self._targets: torch.Tensor | None = None

    def make_targets(self, batch_size: int) -> None:
        if self._make is not None:
            self._targets = self._make(batch_size)

    def release_targets(self) -> None:
        self._targets = None

    @property
    def targets(self) -> torch.Tensor | None:
        return self._targets

    def __call__(self, output: Any) -> torch.Tensor:
        scores = _main_tensor(output)
        if self._targets is None:
            self._make = self._maker(scores)
            self._targets = self._make(scores.shape[0])
        return self._loss(scores, self._targets)

    def _maker(self, scores: torch.Tensor) -> Callable[[int], torch.Tensor]:
        raise NotImplementedError

    def _loss(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _CrossEntropy(_TargetedLoss):
    """Class dimension 1; 3-D outputs are language models: the last one, positions flattened."""

    def _maker(self, scores: torch.Tensor) -> Callable[[int], torch.Tensor]:
        if scores.dim() < 2:
            raise TargetError(
                f"cross-entropy needs class scores, the output has shape {list(scores.shape)}",
                hint="pass `--loss auto`, or a loss of your own: `--loss pkg.mod:fn`",
            )
        language_model = scores.dim() == 3
        classes = scores.shape[-1 if language_model else 1]
        per_sample = scores.shape[1:2] if language_model else scores.shape[2:]
        device = scores.device
        return lambda n: torch.randint(0, classes, (n, *per_sample), device=device)

    def _loss(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if scores.dim() == 3:
            return F.cross_entropy(scores.flatten(0, 1), targets.flatten())
        return F.cross_entropy(scores, targets)


class _MeanSquaredError(_TargetedLoss):
    def _maker(self, scores: torch.Tensor) -> Callable[[int], torch.Tensor]:
        per_sample, device, dtype = scores.shape[1:], scores.device, scores.dtype
        return lambda n: torch.randn((n, *per_sample), device=device, dtype=dtype)

    def _loss(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(scores, targets)


def make_loss(name: str) -> Loss:
    """Return the loss of `--loss`.

    Raises:
        TargetError: the function does not exist.
        ValueError: neither `auto`, `cross-entropy` or `mse`, nor an import path.
    """
    if name == "auto":
        return _FunctionLoss(automatic_loss)
    if name == "cross-entropy":
        return _CrossEntropy()
    if name == "mse":
        return _MeanSquaredError()
    if not is_import_path(name):
        raise ValueError(f"`{name}` is not a loss")
    function = resolve(parse_import_path(name))
    if isinstance(function, type):
        function = function()
    if not callable(function):
        raise TargetError(f"`{name}` is of type `{type(function).__name__}`, not a function")
    return _FunctionLoss(function)


def automatic_loss(output: Any) -> torch.Tensor:
    """Return the output's own loss, or else the sum of the means of its floating tensors.

    The output's `.loss` if it has one (Hugging Face), the output itself if it is a scalar, else
    the sum over floating outputs of `t.float().mean()`.

    Raises:
        TargetError: there is no floating tensor in the output.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, torch.Tensor):
        return own if own.dim() == 0 else own.float().mean()
    if isinstance(output, torch.Tensor) and output.dim() == 0:
        return output
    means = [t.float().mean() for t in _tensors(output) if t.is_floating_point()]
    if not means:
        raise TargetError(
            f"the model returned `{type(output).__name__}` without any floating tensor to train on",
            hint="pass `--loss pkg.mod:fn` (called with the output) or `--step pkg.mod:fn`",
        )
    total = means[0]
    for mean in means[1:]:
        total = total + mean
    return total


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _tensors(getattr(output, field.name))


def _main_tensor(output: Any) -> torch.Tensor:
    """Return the output's scores: its `logits`, or its first floating tensor."""
    logits = (
        output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    )
    if isinstance(logits, torch.Tensor):
        return logits
    for tensor in _tensors(output):
        if tensor.is_floating_point():
            return tensor
    raise TargetError(f"the model returned `{type(output).__name__}` without any floating tensor")

"""Models by name, and the weights that say for which images they are."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn


class WeightsEnum(enum.Enum):
    """Weights of a model."""

    @property
    def transforms(self) -> Any:
        """What prepares its images."""
        return self.value.transforms


class Net_Weights(WeightsEnum):  # noqa: N801 (torchvision writes it so)
    """Weights for images of 96 × 96."""

    DEFAULT = SimpleNamespace(transforms=functools.partial(dict, crop_size=96))


class Net(nn.Sequential):
    """A model without a word about its images."""


def net(*, weights: Any = None, weights_backbone: Any = "default", classes: int = 10) -> Net:
    """Build a model; its backbone has weights, unless the caller wants none."""
    assert weights is None
    assert weights_backbone is None
    return Net(nn.Linear(2, classes))


def list_models() -> list[str]:
    """Return the names."""
    return ["net"]


def get_model_builder(name: str) -> Callable[..., Net]:
    """Return what builds a model."""
    assert name in list_models()
    return net


def get_model(name: str, **arguments: Any) -> Net:
    """Build a model."""
    return get_model_builder(name)(**arguments)


def get_model_weights(name: str) -> type[WeightsEnum]:
    """Return the weights of a model."""
    if name not in list_models():
        raise ValueError(f"Unknown model {name}")
    return Net_Weights

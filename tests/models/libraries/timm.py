"""As much of timm as bsfind looks at."""

from __future__ import annotations

from typing import Any

from torch import nn


class Net(nn.Sequential):
    """A classifier of images, with timm's configuration."""

    def __init__(self, in_chans: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 3, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.num_classes = num_classes
        self.reset_classifier(num_classes)
        self.pretrained_cfg = {"input_size": (3, 32, 32), "first_conv": "conv"}

    def reset_classifier(self, num_classes: int) -> None:
        """Give it another number of classes."""
        self.num_classes = num_classes
        self.head = nn.Linear(8, num_classes) if num_classes else nn.Identity()


def list_models() -> list[str]:
    """Return the names."""
    return ["net50", "net101", "backbone50"]


def is_model(name: str) -> bool:
    """Tell whether there is one of this name."""
    return name in list_models()


def create_model(name: str, pretrained: bool = True, **arguments: Any) -> nn.Module:
    """Return a model of this name, with an optional tag."""
    assert name.partition(".")[0] in list_models()
    assert not pretrained
    if name == "backbone50":
        arguments.setdefault("num_classes", 0)
    return Net(**arguments)

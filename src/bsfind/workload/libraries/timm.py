"""timm: its models by name, and the images that they are trained on."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from bsfind.errors import UsageError
from bsfind.records import Assumption
from bsfind.settings import Workload
from bsfind.workload.libraries.base import (
    Proposal,
    floats,
    height_and_width,
    import_library,
    refuse_weights,
    unknown_name,
)


def factory(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds a model by its name in timm, such as `resnet50.a1_in1k`.

    Raises:
        TargetError: timm is not installed, or has no such model.
    """
    timm = import_library("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise unknown_name("timm", name, timm.list_models())

    def make(**arguments: Any) -> nn.Module:
        refuse_weights("pretrained", arguments.get("pretrained"))
        model: nn.Module = timm.create_model(name, **{**arguments, "pretrained": False})
        add_head = getattr(model, "reset_classifier", None)
        has_no_head = getattr(model, "num_classes", None) == 0
        if has_no_head and "num_classes" not in arguments and add_head is not None:
            add_head(_CLASSES)
            _WITH_CLASSES.add(model)
        return model

    return make


def propose(model: nn.Module, workload: Workload) -> Proposal | None:
    """Return the images that a model of timm is trained on; None if it is not timm's."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(config, dict) or "input_size" not in config:
        return None
    channels, *size = config["input_size"]
    why = "timm's configuration of the model (`input_size`)"
    built = height_and_width(getattr(getattr(model, "patch_embed", None), "img_size", None))
    if built is not None and built != tuple(size):
        size, why = list(built), "the size that the model was built for (`img_size`)"
    wanted = height_and_width(workload.image_size)
    if wanted is not None:
        if built is not None and config.get("fixed_input_size") and wanted != built:
            raise UsageError(
                f"`{type(model).__name__}` was built for images of {built[0]} × {built[1]}",
                hint=f"`--model-arg img_size={workload.image_size}` builds it for others",
            )
        size = list(wanted)
    channels = _channels(model, config.get("first_conv")) or channels
    return Proposal(inputs=(floats(None, channels, *size),), why=why, follows=_FOLLOWS)


_CLASSES = 1000
"""Classes of a model that timm builds without any."""

_WITH_CLASSES: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def assumed_classes(model: nn.Module) -> Assumption | None:
    """Return what was assumed where a model got classes that timm's has not."""
    if model not in _WITH_CLASSES:
        return None
    return Assumption(
        what="classes",
        value=f"--model-arg num_classes={_CLASSES}",
        why="timm builds the model without classes, for weights of a backbone, which is trained with a "
        "head; `--model-arg num_classes=0` leaves it out",
    )


_FOLLOWS = frozenset(("image_size",))


def _channels(model: nn.Module, first: Any) -> int | None:
    """Return how many channels the first convolution takes; None if that is not the image's."""
    names = (first,) if isinstance(first, str) else tuple(first or ())
    modules = dict(model.named_modules())
    found = {getattr(modules.get(name), "in_channels", None) for name in names}
    # Some models move blocks of pixels into the channels before their first convolution.
    channels = found.pop() if len(found) == 1 else None
    return channels if isinstance(channels, int) and channels < 12 else None

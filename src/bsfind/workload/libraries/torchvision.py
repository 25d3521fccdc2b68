"""torchvision: its models by name, and the images that they are trained on."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from bsfind.errors import UsageError
from bsfind.settings import Workload
from bsfind.workload.libraries.base import (
    IMAGE_SIZE,
    Proposal,
    batches_of,
    floats,
    height_and_width,
    import_library,
    refuse_weights,
    unknown_name,
)

_FRAMES = 16
"""Frames of a clip, as torchvision's models of videos are trained with."""

_BACKGROUND_AND_ONE = 2
"""Classes of a detector whose own number is not known: labels of 1 are valid in each."""


def factory(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds a model by its name in torchvision, without pretrained weights.

    Raises:
        TargetError: torchvision is not installed, or has no such model.
    """
    import_library("torchvision")
    models = import_library("torchvision.models")
    if name not in models.list_models():
        raise unknown_name("torchvision", name, models.list_models())
    takes = inspect.signature(models.get_model_builder(name)).parameters
    without = {key: None for key in ("weights", "weights_backbone") if key in takes}

    def make(**arguments: Any) -> nn.Module:
        for key in without:
            refuse_weights(key, arguments.get(key))
        model: nn.Module = models.get_model(name, **{**arguments, **without})
        return model

    return make


def propose(model: nn.Module, workload: Workload) -> Proposal | None:
    """Return the images that a model of torchvision is trained on; None if it is not torchvision's."""
    module = type(model).__module__
    if not module.startswith("torchvision.models"):
        return None
    if module.startswith("torchvision.models.optical_flow"):
        raise UsageError(
            f"`{type(model).__name__}` is trained on pairs of images, whose size and loss are not known",
            hint="`--input image1=3,368,496 --input image2=3,368,496`, and the loss of its list of flows "
            "with `--loss pkg.mod:fn`",
        )
    if module.startswith("torchvision.models.detection"):
        return _detection(model)
    transforms = _transforms(model, workload.target.rpartition(":")[2])
    size = height_and_width(getattr(model, "image_size", None))
    why = "the size that the model was built for"
    if size is None:
        keywords = getattr(transforms, "keywords", {})
        size = height_and_width(keywords.get("crop_size") or keywords.get("resize_size"))
        why = "the size of images with torchvision's weights of this model"
    if size is None:
        size, why = (IMAGE_SIZE, IMAGE_SIZE), "the usual size of images"
    size = height_and_width(workload.image_size) or size
    is_video = module.startswith("torchvision.models.video")
    shape = (3, _FRAMES, *size) if is_video else (3, *size)
    if is_video:
        why += f", {_FRAMES} frames a clip"
    return Proposal(inputs=(floats(None, *shape),), why=why, follows=frozenset(("image_size",)))


def _detection(model: nn.Module) -> Proposal:
    """Return images and what is in them, as a detector takes them."""

    def part(*path: str) -> Any:
        found: Any = model
        for name in path:
            found = getattr(found, name, None)
        return found

    counts = (
        part("roi_heads", "box_predictor", "cls_score", "out_features"),
        part("head", "classification_head", "num_classes"),
        part("head", "classification_head", "num_columns"),  # SSD
    )
    classes = next((n for n in counts if isinstance(n, int)), _BACKGROUND_AND_ONE)
    why = f"a detector of torchvision with {classes} classes"
    size = part("transform", "fixed_size") or max(part("transform", "min_size") or (None,))
    if size is not None:
        height, width = height_and_width(size) or (size, size)
        why += f", which resizes these images to {height} × {width}"
    return batches_of(
        "detection",
        why,
        classes=classes,
        masks=part("roi_heads", "mask_predictor") is not None,
        keypoints=part("roi_heads", "keypoint_predictor", "kps_score_lowres", "out_channels"),
    )


def _transforms(model: nn.Module, name: str) -> Any:
    """Return what prepares images for the model: that of its name, or of the first of its class."""
    models = import_library("torchvision.models")
    try:
        weights = models.get_model_weights(name)
    except ValueError:
        own = _plain(type(model).__name__)
        in_module = vars(sys.modules[type(model).__module__]).values()
        weights = next(
            (
                cls
                for cls in in_module
                if inspect.isclass(cls)
                and issubclass(cls, models.WeightsEnum)
                and _plain(cls.__name__).startswith(own)
            ),
            (),
        )
    return weights.DEFAULT.transforms if len(weights) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())

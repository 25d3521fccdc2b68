"""Models as they are published, from timm, torchvision and transformers; weights are random."""

from __future__ import annotations

from typing import Any

from benchmarks.torchvision_import import import_torchvision

import_torchvision()

__all__ = ["hugging_face", "timm_model", "timm_sized", "torchvision_model"]


def timm_model(name: str, **settings: Any) -> Any:
    """A model of timm."""
    import timm

    return timm.create_model(name, **settings)


def timm_sized(name: str, side: int) -> Any:
    """A model of timm for square images; most of those with convolutions alone take any."""
    try:
        return timm_model(name, img_size=side)
    except TypeError:
        return timm_model(name)


def torchvision_model(name: str, **settings: Any) -> Any:
    """A model of torchvision."""
    from torchvision import models

    for module in (models, models.segmentation, models.video):
        if hasattr(module, name):
            # Segmentation models would fetch weights of the network below them.
            backbone = {"weights_backbone": None} if module is models.segmentation else {}
            return getattr(module, name)(weights=None, **settings, **backbone)
    raise KeyError(name)


def hugging_face(model: str, config: str, **settings: Any) -> Any:
    """A model of transformers, of a size that fits a benchmark."""
    import transformers

    transformers.logging.set_verbosity_error()
    return getattr(transformers, model)(getattr(transformers, config)(**settings))

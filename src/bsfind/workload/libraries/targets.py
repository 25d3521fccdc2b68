"""From a target to what builds the model: `timm:NAME`, `torchvision:NAME`, `hf:NAME`, or an import path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bsfind.import_path import parse_import_path, resolve
from bsfind.workload.libraries import hub, timm, torchvision
from bsfind.workload.libraries.transformers import from_default_configuration

_FACTORIES: dict[str, Callable[[str], Callable[..., nn.Module]]] = {
    "timm": timm.factory,
    "torchvision": torchvision.factory,
    "hf": hub.factory,
}


def find_target(target: str) -> Any:
    """Return what a target names: a class, a function, an instance, or the function that builds it.

    Raises:
        TargetError: there is no such object, or no such model in a library.
    """
    path = parse_import_path(target)
    if path.module in _FACTORIES:
        return _FACTORIES[path.module](path.attribute)
    found = resolve(path)
    return from_default_configuration(found) or found

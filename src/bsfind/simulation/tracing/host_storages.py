"""Meta storages that stand for the host's memory: a model before it is moved to the GPU."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from bsfind.simulation.tracing.torch_private import (
    address_of,
)

__all__ = ["HostStorages"]


class HostStorages:
    """A set of storages that lets go of the dead; false while it is empty."""

    def __init__(self) -> None:
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __len__(self) -> int:
        return len(self._storages)

    def add(self, tensor: torch.Tensor) -> None:
        """Add a tensor's storage."""
        storage = tensor.untyped_storage()
        key = address_of(storage)
        storages = self._storages
        if key not in storages:
            storages[key] = weakref.ref(storage, lambda _: storages.pop(key, None))

    def has(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's storage is in the set."""
        if not self._storages or tensor.layout is not torch.strided:
            return False
        return address_of(tensor.untyped_storage()) in self._storages

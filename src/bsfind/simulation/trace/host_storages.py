"""Meta storages that stand for the host's memory: a model before it is moved to the GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from bsfind.simulation.trace.torch_private import address_of

_LARGE = 32 << 20
"""Bytes from which on a tensor of the host is one without values. Constructors read small ones
(drop-path rates, tables of positions); what is as large as this is a weight, or as good as one."""


def is_large(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is too large to be kept with its values."""
    return tensor.numel() * tensor.element_size() >= _LARGE


_STORAGES: dict[int, weakref.ref[Any]] = {}
"""Those of this process, whichever tracer saw them made: modules keep what they made when imported."""


class HostStorages:
    """The set of these storages, which lets go of the dead; false while it is empty.

    Args:
        on_death: called with the address of a storage of the set that dies.

    Attributes:
        stand_ins: parameters that took the place of others, which could not be made meta in place.
    """

    def __init__(self, on_death: Callable[[int], None]) -> None:
        self._on_death = on_death
        self.stand_ins: MutableMapping[torch.Tensor, torch.nn.Parameter] = WeakIdKeyDictionary()

    def __len__(self) -> int:
        return len(_STORAGES)

    def add(self, tensor: torch.Tensor) -> None:
        """Add a tensor's storage."""
        storage = tensor.untyped_storage()
        key, on_death = address_of(storage), self._on_death

        def died(reference: Any) -> None:
            if _STORAGES.get(key) is reference:
                del _STORAGES[key]
                on_death(key)

        if key not in _STORAGES:
            _STORAGES[key] = weakref.ref(storage, died)

    def has(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's storage is in the set."""
        if not _STORAGES or tensor.layout is not torch.strided:
            return False
        return address_of(tensor.untyped_storage()) in _STORAGES
